/* Text for terminals: what comes from elsewhere is made harmless, and tables are aligned. Private to ctl. */
#ifndef ZT_CTL_TERM_H
#define ZT_CTL_TERM_H

#include <stddef.h>
#include <stdio.h>

#define ZT_TERM_COLUMNS_MAX 16

/* A copy in which no character can steer a terminal: control characters (C0, DEL, C1), bidirectional overrides and invalid UTF-8
 * become "?". NULL gives "-". Returns owned (zt_free). */
char *zt_term_safe(const char *text);
/* Prints text made safe. */
void zt_term_print(FILE *out, const char *text);

/* A table: add cells row by row (the first row is the heading), then print. */
struct zt_term_table {
    unsigned n_columns;
    char **cells; /* safe; owned */
    size_t n, cap;
};
void zt_term_table_init(struct zt_term_table *t, unsigned n_columns);
void zt_term_table_cell(struct zt_term_table *t, const char *text);
__attribute__((format(printf, 2, 3))) void zt_term_table_cellf(struct zt_term_table *t, const char *fmt, ...);
void zt_term_table_print(const struct zt_term_table *t, FILE *out);
void zt_term_table_fini(struct zt_term_table *t);

#endif
