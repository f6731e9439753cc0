/* A key log: TLS secrets in the form that SSLKEYLOGFILE has everywhere ("LABEL client_random secret", a line each), so that Wireshark can read
 * what tcpdump took. For debugging: whoever has the file can read the tunnels that it speaks of.
 * Writing is one append to a file from whatever thread makes the handshake: it may wait for a disk. Thread: any. */
#ifndef ZT_NET_TLS_KEYLOG_H
#define ZT_NET_TLS_KEYLOG_H

#include "zt/base/err.h"

struct zt_tls_keylog;
struct zt_tls_handshake;

/* Opens path for appending, makes it (0600) when it is absent. A link, or a file that others may read or write, is refused.
 * Returns owned in *out. Errors: ZT_IO with what to do. */
enum zt_err zt_tls_keylog_open(const char *path, struct zt_tls_keylog **out, struct zt_error *err);
void zt_tls_keylog_free(struct zt_tls_keylog *k); /* no handshake has it any more; NULL is legal */
/* From here on this handshake's secrets go to k; borrows k until the handshake ends. NULL: nowhere, as before. Right after it was begun. */
void zt_tls_handshake_keylog(struct zt_tls_handshake *h, struct zt_tls_keylog *k);

#endif
