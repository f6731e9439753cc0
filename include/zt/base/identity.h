/* SPIFFE identities: spiffe://<trust domain>/ns/<namespace>/sa/<service account> (spec/controlplane §4.12).
 * Thread: any. */
#ifndef ZT_BASE_IDENTITY_H
#define ZT_BASE_IDENTITY_H

#include <stdbool.h>
#include <stddef.h>

#define ZT_IDENTITY_MAX 768 /* bytes of the text, NUL included; longer ones do not parse */

/* A parsed view: offsets into the text it was parsed from. */
struct zt_identity_view {
    const char *trust_domain, *ns, *sa;       /* not NUL-terminated; borrowed from the text */
    size_t trust_domain_len, ns_len, sa_len;  /* bytes */
};

/* Exactly five pieces after the scheme, "ns" second, "sa" fourth; empty pieces are legal; nothing else is validated.
 * text need not be NUL-terminated. out may be NULL. */
bool zt_identity_parse(const char *text, size_t len, struct zt_identity_view *out);
/* Formats into buf (ZT_IDENTITY_MAX bytes). Returns false when it does not fit. */
bool zt_identity_format(char buf[static ZT_IDENTITY_MAX], const char *trust_domain, const char *ns,
                        const char *sa);

#endif
