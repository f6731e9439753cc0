/* See ask.h. A part is one message that travels control -> worker -> control. */
#include "ask.h"

static void on_part_back(struct zt_msg *m)
{
    struct zt_ask *a = zt_container_of(m, struct zt_ask_part, msg)->ask;
    if (--a->left)
        return;
    if (!a->given_up) {
        zt_list_remove(&a->link);
        a->on_done(a);
    }
    for (unsigned i = 0; a->free_result && i < a->n; i++)
        a->free_result(a->parts[i].result);
    zt_free(a->question);
    zt_free(a);
}

static void on_part(struct zt_msg *m)
{
    struct zt_ask_part *part = zt_container_of(m, struct zt_ask_part, msg);
    part->ask->on_worker(part);
    part->msg.run = on_part_back;
    zt_loop_post(part->ask->p->control, &part->msg);
}

struct zt_ask *zt_ask_new(struct zt_proxy *p, void (*on_worker)(struct zt_ask_part *), void (*on_done)(struct zt_ask *), void *arg)
{
    struct zt_ask *a = zt_zalloc(sizeof(*a) + p->config.n_workers * sizeof(a->parts[0]));
    a->p = p;
    a->n = a->left = p->config.n_workers;
    a->on_worker = on_worker;
    a->on_done = on_done;
    a->arg = arg;
    zt_list_push_back(&p->asks, &a->link);
    return a;
}

void zt_asks_give_up(struct zt_proxy *p)
{
    struct zt_link *link;
    while ((link = zt_list_pop_front(&p->asks))) {
        struct zt_ask *a = zt_container_of(link, struct zt_ask, link);
        a->given_up = true;
        a->on_done(a);
    }
}

void zt_ask_send(struct zt_ask *a)
{
    for (unsigned i = 0; i < a->n; i++) {
        a->parts[i] = (struct zt_ask_part){.ask = a, .w = &a->p->workers[i]};
        a->parts[i].msg.run = on_part;
        zt_loop_post(a->p->workers[i].loop, &a->parts[i].msg);
    }
}
