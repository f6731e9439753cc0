/* The descriptor reserve: the data path stops taking descriptors at the limit minus a reserve, so that readiness, admin, the
 * control plane and descriptors passed over ZDS still work when a node runs out (spec/dataplane §16).
 * The kernel hands out the lowest free number, so the number itself tells how full the table is. Thread: any after set. */
#ifndef ZT_NET_FD_GUARD_H
#define ZT_NET_FD_GUARD_H

#include <stdbool.h>

#define ZT_FD_RESERVED 64

/* From now on the data path may hold descriptors below RLIMIT_NOFILE's soft limit minus reserved. Thread: control, before workers. */
void zt_fd_guard_set(unsigned reserved);
/* May the data path keep a descriptor of this number? */
bool zt_fd_guard_allows(int fd);
/* Would a new descriptor be allowed? Costs nothing while `last` (the newest descriptor seen) is far from the limit, two system
 * calls near it. */
bool zt_fd_guard_room(int last);

#endif
