/* The files of `ztctl ca issue`. Private to ctl. */
#ifndef ZT_CTL_ISSUE_H
#define ZT_CTL_ISSUE_H

#include "zt/base/err.h"
#include <jansson.h>

/* Writes DIR/key.pem, DIR/cert-chain.pem and DIR/root-cert.pem, 0600, each replaced in one step; makes DIR (0700) when it is absent.
 * Errors: ZT_INVALID (the reply lacks a part), ZT_IO with the path. */
enum zt_err zt_ctl_write_certificate(const json_t *reply, const char *dir, struct zt_error *err);

#endif
