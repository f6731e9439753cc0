/* SPIFFE identities. A NUL inside a text (a certificate can carry one) never parses: the rest of
 * the program compares identities as C strings and would see a shorter name than the one that was
 * signed. */
#include "zt/base/identity.h"

#include "zt/base/str.h"
#include <string.h>

static const char scheme[] = "spiffe://";

bool zt_identity_parse(const char *text, size_t len, struct zt_identity_view *out)
{
    const size_t scheme_len = sizeof scheme - 1;
    if (len >= ZT_IDENTITY_MAX || len < scheme_len || memcmp(text, scheme, scheme_len) != 0 ||
        memchr(text, '\0', len))
        return false;
    const char *piece[5], *end = text + len, *at = text + scheme_len;
    size_t piece_len[5];
    for (unsigned i = 0; i < 5; i++) {
        const char *slash = memchr(at, '/', (size_t)(end - at));
        if ((i < 4) != (slash != NULL)) /* four slashes, no more, no less */
            return false;
        piece[i] = at;
        piece_len[i] = (size_t)((slash ? slash : end) - at);
        at = slash ? slash + 1 : end;
    }
    if (piece_len[1] != 2 || memcmp(piece[1], "ns", 2) != 0 || piece_len[3] != 2 ||
        memcmp(piece[3], "sa", 2) != 0)
        return false;
    if (out)
        *out = (struct zt_identity_view){
            .trust_domain = piece[0],
            .trust_domain_len = piece_len[0],
            .ns = piece[2],
            .ns_len = piece_len[2],
            .sa = piece[4],
            .sa_len = piece_len[4],
        };
    return true;
}

bool zt_identity_format(char buf[static ZT_IDENTITY_MAX], const char *trust_domain, const char *ns,
                        const char *sa)
{
    return zt_fmt(buf, ZT_IDENTITY_MAX, "%s%s/ns/%s/sa/%s", scheme, trust_domain, ns, sa);
}
