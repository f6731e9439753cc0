/* The fields of a pod, for those who go through all of them. */
#ifndef ZT_AGENT_PODLIST_IMPL_H
#define ZT_AGENT_PODLIST_IMPL_H

#include "zt/agent/podlist.h"

#define ZT_PODLIST_N_NEEDED 5
#define ZT_PODLIST_N_FIELDS 8

struct zt_podlist_field {
    const char *key;
    size_t at; /* of the char * in struct zt_podlist_pod */
};
extern const struct zt_podlist_field zt_podlist_fields[ZT_PODLIST_N_FIELDS]; /* those that every pod has come first */

static inline char **zt_podlist_field(struct zt_podlist_pod *p, int i)
{
    return (char **)((char *)p + zt_podlist_fields[i].at);
}

#endif
