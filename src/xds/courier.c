/* Between the control loop and the apply thread: parcels go over, are worked on one after the
 * other, a piece per turn so that other work of that thread is not kept waiting, and come back.
 *
 * Invariants: the mirror and the queue belong to the apply thread, `freed` and the events to
 * control. At most one tick is in the apply thread's mailbox. Messages of one sender keep their
 * order, so the last that control hears is `gone`, and then frees the courier. */
#include "xds_impl.h"

#include "zt/base/list.h"
#include "zt/base/mem.h"

enum parcel_kind { ASK, RESPONSE, APPLIED };

struct parcel {
    struct zt_msg msg;
    struct zt_link queue_link;
    struct zt_xds_courier *courier;
    enum parcel_kind kind;
    uint64_t stream;
    bool without_versions;
    bool begun;
    struct zt_rpc_message *message;
    struct zt_xds_initial initial;
    struct zt_store_changes changes;
    struct zt_xds_outcome outcome;
};

struct zt_xds_courier {
    struct zt_loop *control, *apply;
    const struct zt_xds_courier_events *events;
    void *arg;
    bool freed; /* control's */
    struct zt_msg bye, gone;
    /* the apply thread's */
    struct zt_store *store;
    struct zt_xds_mirror *mirror;
    uint8_t *node;
    size_t n_node;
    struct zt_link queue;
    struct zt_msg tick;
    bool ticking, closing;
};

static void parcel_free(struct parcel *p)
{
    zt_rpc_message_free(p->message);
    for (enum zt_xds_type t = 0; t < ZT_XDS_TYPES; t++)
        zt_free(p->initial.bytes[t]);
    zt_store_changes_fini(&p->changes);
    zt_xds_outcome_fini(&p->outcome);
    zt_free(p);
}

static struct parcel *parcel_new(struct zt_xds_courier *c, enum parcel_kind kind, uint64_t stream)
{
    struct parcel *p = zt_new(struct parcel);
    p->courier = c;
    p->kind = kind;
    p->stream = stream;
    return p;
}

/* ---- control ---- */

static void on_return(struct zt_msg *msg)
{
    struct parcel *p = zt_container_of(msg, struct parcel, msg);
    struct zt_xds_courier *c = p->courier;
    if (!c->freed) {
        switch (p->kind) {
        case ASK:
            c->events->on_initial(c->arg, p->stream, &p->initial);
            break;
        case RESPONSE:
            c->events->on_outcome(c->arg, p->stream, &p->outcome);
            break;
        case APPLIED:
            c->events->on_applied(c->arg, &p->changes);
            break;
        }
    }
    parcel_free(p);
}

static void on_gone(struct zt_msg *msg)
{
    zt_free(zt_container_of(msg, struct zt_xds_courier, gone));
}

/* ---- apply thread ---- */

static void send_back(struct parcel *p)
{
    p->msg.run = on_return;
    zt_loop_post(p->courier->control, &p->msg);
}

static void answer(struct zt_xds_courier *c, struct parcel *p)
{
    struct zt_xds_initial *i = &p->initial;
    for (enum zt_xds_type t = 0; t < ZT_XDS_TYPES; t++)
        i->bytes[t] = zt_xds_mirror_initial(c->mirror, t, c->node, c->n_node, p->without_versions,
                                            &i->n[t], &i->n_held[t]);
}

static bool has_changes(const struct zt_store_changes *c)
{
    return c->n_workloads || c->n_services || c->n_policies || c->policies;
}

/* A piece of a response. False: it is done. */
static bool work(struct zt_xds_courier *c, struct parcel *p)
{
    if (!p->begun) {
        struct zt_rpc_message *message = p->message;
        p->begun = true;
        p->message = NULL;
        if (!zt_xds_mirror_begin(c->mirror, message)) {
            zt_xds_mirror_end(c->mirror, &p->outcome);
            return false;
        }
    }
    struct parcel *applied = parcel_new(c, APPLIED, p->stream);
    bool more = zt_xds_mirror_step(c->mirror, &applied->changes);
    if (has_changes(&applied->changes))
        send_back(applied);
    else
        parcel_free(applied);
    if (!more)
        zt_xds_mirror_end(c->mirror, &p->outcome);
    return more;
}

static void close_down(struct zt_xds_courier *c)
{
    for (struct zt_link *l; (l = zt_list_pop_front(&c->queue));)
        parcel_free(zt_container_of(l, struct parcel, queue_link));
    zt_xds_mirror_free(c->mirror);
    zt_free(c->node);
    c->gone.run = on_gone;
    zt_loop_post(c->control, &c->gone);
}

static void schedule(struct zt_xds_courier *c)
{
    if (c->ticking)
        return;
    c->ticking = true;
    zt_loop_post(c->apply, &c->tick);
}

static void on_tick(struct zt_msg *msg)
{
    struct zt_xds_courier *c = zt_container_of(msg, struct zt_xds_courier, tick);
    c->ticking = false;
    if (c->closing) {
        close_down(c);
        return;
    }
    struct parcel *p = zt_container_of(zt_list_first(&c->queue), struct parcel, queue_link);
    bool done = true;
    if (p->kind == ASK)
        answer(c, p);
    else
        done = !work(c, p);
    if (done) {
        zt_list_remove(&p->queue_link);
        send_back(p);
    }
    if (!zt_list_empty(&c->queue))
        schedule(c);
}

static void on_parcel(struct zt_msg *msg)
{
    struct parcel *p = zt_container_of(msg, struct parcel, msg);
    zt_list_push_back(&p->courier->queue, &p->queue_link);
    schedule(p->courier);
}

static void on_bye(struct zt_msg *msg)
{
    struct zt_xds_courier *c = zt_container_of(msg, struct zt_xds_courier, bye);
    c->closing = true;
    if (!c->ticking)
        close_down(c);
}

/* ---- the face ---- */

struct zt_xds_courier *zt_xds_courier_new(struct zt_loop *control, struct zt_loop *apply,
                                          struct zt_store *store, uint8_t *node, size_t n_node,
                                          const struct zt_xds_courier_events *events, void *arg)
{
    struct zt_xds_courier *c = zt_new(struct zt_xds_courier);
    *c = (struct zt_xds_courier){.control = control, .apply = apply, .store = store};
    c->node = node;
    c->n_node = n_node;
    c->events = events;
    c->arg = arg;
    c->mirror = zt_xds_mirror_new(store);
    c->tick.run = on_tick;
    c->bye.run = on_bye;
    zt_list_init(&c->queue);
    return c;
}

static void send_over(struct parcel *p)
{
    p->msg.run = on_parcel;
    zt_loop_post(p->courier->apply, &p->msg);
}

void zt_xds_courier_ask(struct zt_xds_courier *c, uint64_t stream, bool without_versions)
{
    struct parcel *p = parcel_new(c, ASK, stream);
    p->without_versions = without_versions;
    send_over(p);
}

void zt_xds_courier_give(struct zt_xds_courier *c, uint64_t stream, struct zt_rpc_message *message)
{
    struct parcel *p = parcel_new(c, RESPONSE, stream);
    p->message = message;
    send_over(p);
}

void zt_xds_courier_free(struct zt_xds_courier *c)
{
    if (!c)
        return;
    c->freed = true;
    zt_loop_post(c->apply, &c->bye);
}
