/* Intrusive doubly linked list. The head is a link that points to itself when empty; an unlinked element's link is all NULL.
 * A list owns nothing: elements are embedded in what their owner keeps, and functions return them borrowed.
 * Thread: the owner of the list. */
#ifndef ZT_BASE_LIST_H
#define ZT_BASE_LIST_H

#include "zt/base/mem.h"
#include <stdbool.h>

struct zt_link {
    struct zt_link *prev, *next;
};

#define ZT_LIST_INIT(head)                                                                         \
    {                                                                                              \
        &(head), &(head)                                                                           \
    }

static inline void zt_list_init(struct zt_link *head)
{
    head->prev = head->next = head;
}
static inline bool zt_list_empty(const struct zt_link *head)
{
    return head->next == head || !head->next;
}
static inline bool zt_link_linked(const struct zt_link *l)
{
    return l->next;
}
static inline void zt_list_push_back(struct zt_link *head, struct zt_link *l)
{
    l->prev = head->prev;
    l->next = head;
    head->prev->next = l;
    head->prev = l;
}
static inline void zt_list_push_front(struct zt_link *head, struct zt_link *l)
{
    zt_list_push_back(head->next, l);
}
/* Legal on an unlinked element. */
static inline void zt_list_remove(struct zt_link *l)
{
    if (!l->next)
        return;
    l->prev->next = l->next;
    l->next->prev = l->prev;
    l->prev = l->next = NULL;
}
static inline struct zt_link *zt_list_first(const struct zt_link *head)
{
    return zt_list_empty(head) ? NULL : head->next;
}
static inline struct zt_link *zt_list_last(const struct zt_link *head)
{
    return zt_list_empty(head) ? NULL : head->prev;
}
static inline struct zt_link *zt_list_pop_front(struct zt_link *head)
{
    struct zt_link *l = zt_list_first(head);
    if (l)
        zt_list_remove(l);
    return l;
}
/* Moves every element of from (left empty) to the end of to. */
static inline void zt_list_splice(struct zt_link *to, struct zt_link *from)
{
    if (zt_list_empty(from))
        return;
    from->next->prev = to->prev;
    to->prev->next = from->next;
    from->prev->next = to;
    to->prev = from->prev;
    zt_list_init(from);
}

#define zt_list_each(it, head) for (struct zt_link *it = (head)->next; it != (head); it = it->next)
/* it may be removed or freed in the body; other elements may not. */
#define zt_list_each_safe(it, head)                                                                \
    for (struct zt_link *it = (head)->next, *it##_next = it->next; it != (head);                   \
         it = it##_next, it##_next = it->next)

#endif
