/* The daemon's answers for people. Missing members are shown as "-": the daemon may be of another version. Private to ctl. */
#ifndef ZT_CTL_SHOW_H
#define ZT_CTL_SHOW_H

#include <jansson.h>
#include <stdio.h>

void zt_ctl_show_status(const json_t *status, FILE *out);
void zt_ctl_show_pods(const json_t *pods, FILE *out);
void zt_ctl_show_connections(const json_t *answer, FILE *out);
void zt_ctl_show_top(const json_t *answer, FILE *out); /* connections have "bytesPerSecond" */
void zt_ctl_show_policies(const json_t *policies, FILE *out);
void zt_ctl_show_certificates(const json_t *certificates, FILE *out);
void zt_ctl_show_denials(const json_t *denials, FILE *out);
void zt_ctl_show_event(const json_t *event, FILE *out);
void zt_ctl_show_trace(const json_t *trace, FILE *out);
void zt_ctl_show_dns(const json_t *dns, FILE *out);
void zt_ctl_show_explain(const json_t *explain, FILE *out);

#endif
