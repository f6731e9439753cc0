/* Which flight asks upstream when pods of one identity ask the same on several workers: the first one leads. A flight that comes later on
 * another worker follows it: it asks nobody, and is told by message what the leader got.
 *
 *   place of a follower   on                     to
 *   LISTED                the leader ends        TOLD, the message is under way
 *                         the follower ends      gone
 *   TOLD                  the message arrives    gone; the follower, if it has not ended, goes on with what it was told
 *
 * The table is under one mutex, held for a hash lookup and, when a leader with followers ends, a copy of the answer for each. A follower's
 * loop is there as long as its place is LISTED, so leaders post under the mutex. */
#include "dns_impl.h"

#include <pthread.h>

struct dns_lead {
    UT_hash_handle hh;
    struct zt_link followers; /* places that are LISTED */
    size_t key_len;
    uint8_t key[];
};

struct dns_place {
    struct zt_link link;
    struct zt_msg msg;
    struct zt_loop *loop;
    struct dns_flight *flight; /* touched by its own worker only; NULL: it has ended */
    uint8_t *wire;             /* TOLD: the answer, or NULL: the leader got none */
    size_t len;
};

struct dns_leads {
    pthread_mutex_t mutex;
    struct dns_lead *leads; /* by key */
};

struct dns_leads *dns_leads_new(void)
{
    struct dns_leads *t = zt_new(struct dns_leads);
    pthread_mutex_init(&t->mutex, NULL);
    return t;
}

void dns_leads_free(struct dns_leads *t)
{
    pthread_mutex_destroy(&t->mutex);
    zt_free(t);
}

static void run_told(struct zt_msg *msg)
{
    struct dns_place *p = zt_container_of(msg, struct dns_place, msg);
    if (p->flight) {
        p->flight->place = NULL;
        dns_flight_told(p->flight, p->wire, p->len);
    }
    zt_free(p->wire);
    zt_free(p);
}

static struct dns_lead *lead_new(struct dns_leads *t, const struct dns_key *k)
{
    struct dns_lead *l = zt_zalloc(sizeof *l + k->len);
    l->key_len = k->len;
    memcpy(l->key, k->bytes, k->len);
    zt_list_init(&l->followers);
    HASH_ADD(hh, t->leads, key, k->len, l);
    return l;
}

static struct dns_place *place_new(struct dns_lead *l, struct dns_flight *f)
{
    struct dns_place *p = zt_new(struct dns_place);
    p->msg.run = run_told;
    p->loop = f->w->loop;
    p->flight = f;
    zt_list_push_back(&l->followers, &p->link);
    return p;
}

bool dns_lead_take(struct dns_flight *f)
{
    struct dns_leads *t = f->w->dns->leads;
    struct dns_lead *l;
    pthread_mutex_lock(&t->mutex);
    HASH_FIND(hh, t->leads, f->key.bytes, f->key.len, l);
    if (l)
        f->place = place_new(l, f);
    else
        f->lead = lead_new(t, &f->key);
    pthread_mutex_unlock(&t->mutex);
    return f->lead;
}

static void tell(struct dns_place *p, const uint8_t *wire, size_t len)
{
    if (wire) {
        p->wire = zt_zalloc(len);
        p->len = len;
        memcpy(p->wire, wire, len);
    }
    zt_loop_post(p->loop, &p->msg);
}

void dns_lead_end(struct dns_flight *f, const uint8_t *wire, size_t len)
{
    struct dns_leads *t = f->w->dns->leads;
    struct zt_link *link;
    if (!f->lead)
        return;
    pthread_mutex_lock(&t->mutex);
    HASH_DEL(t->leads, f->lead);
    while ((link = zt_list_pop_front(&f->lead->followers)))
        tell(zt_container_of(link, struct dns_place, link), wire, len);
    pthread_mutex_unlock(&t->mutex);
    zt_free(f->lead);
    f->lead = NULL;
}

void dns_lead_leave(struct dns_flight *f)
{
    struct dns_leads *t = f->w->dns->leads;
    struct dns_place *p = f->place;
    if (!p)
        return;
    f->place = NULL;
    pthread_mutex_lock(&t->mutex);
    bool listed = zt_link_linked(&p->link);
    zt_list_remove(&p->link);
    pthread_mutex_unlock(&t->mutex);
    if (listed)
        zt_free(p);
    else
        p->flight = NULL; /* its message frees it */
}
