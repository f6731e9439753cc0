/* What a question gets (spec/dataplane §10.2): from the state when the name is there, else from upstream.
 *
 * A question that is answered at once never becomes an object; one that has to wait does:
 *
 *   state     on                                      to
 *   WAITING   the pod's workload record arrives       answered, or FORWARDED
 *             it does not in time                     SERVFAIL
 *   FORWARDED the flight ends                         answered
 *   any       the server stops                        gone, a lookup ends with nothing
 *
 * Lookups take the same way; their result is told from a task, so that nobody is called from inside his own call. */
#include "dns_impl.h"

#include <sys/socket.h>

#define TOKENS_MAX ((double)ZT_DNS_POD_FORWARD_RATE)

static struct ev_loop *ev_of(const struct zt_dns_server *s)
{
    return zt_loop_ev(s->w->loop);
}

/* ---- sending ---- */

/* w->reply + 2 holds the message. A datagram that does not fit now is lost, as datagrams are. */
static void send_reply(struct zt_dns_server *s, const struct dns_origin *o, size_t len)
{
    struct sockaddr_storage ss;
    if (o->kind == ORIGIN_TCP) {
        dns_conn_reply(o->conn, len);
        return;
    }
    socklen_t n = zt_addr_to_sockaddr(&o->peer, &ss);
    if (o->listener->fd >= 0)
        sendto(o->listener->fd, s->w->reply + 2, len, MSG_NOSIGNAL, (struct sockaddr *)&ss, n);
}

static size_t limit_of(const struct dns_origin *o, const struct zt_dns_query *q)
{
    return zt_dns_reply_limit(q, o->kind == ORIGIN_TCP);
}

static void send_error(struct zt_dns_server *s, const struct dns_origin *o, const struct zt_dns_query *q, enum zt_dns_rcode rcode)
{
    send_reply(s, o, zt_dns_reply_error(q, rcode, s->w->reply + 2));
}

/* ---- from here, without asking anybody ---- */

static bool is_address_question(const struct zt_dns_query *q)
{
    return (q->type == ZT_DNS_A || q->type == ZT_DNS_AAAA) && q->qclass == 1 && q->name[0];
}

/* Names that no upstream is asked for (RFC 6761 §6.3, §6.4). */
static bool resolve_special(const struct zt_dns_query *q, struct zt_name_answer *out, enum zt_dns_rcode *rcode)
{
    size_t rest;
    *rcode = ZT_DNS_NOERROR;
    if (strcmp(q->name, "invalid") == 0 || zt_names_has_domain(q->name, "invalid", &rest)) {
        *rcode = ZT_DNS_NXDOMAIN;
        return true;
    }
    if (strcmp(q->name, "localhost") != 0 && !zt_names_has_domain(q->name, "localhost", &rest))
        return false;
    if (out->cap == 0) {
        out->cap = 8;
        out->ips = zt_new_n(struct zt_ip, out->cap);
    }
    out->owner[0] = '\0';
    out->n_ips = 1;
    out->ips[0] = zt_ip_loopback(q->type == ZT_DNS_AAAA ? ZT_IPV6 : ZT_IPV4);
    return true;
}

/* True: w->answer (or *rcode) is the answer. */
static bool resolve_here(struct zt_dns_server *s, const struct zt_dns_query *q, const struct zt_workload *client,
                         enum zt_dns_rcode *rcode)
{
    struct zt_name_answer *a = &s->w->answer;
    enum zt_family family = q->type == ZT_DNS_AAAA ? ZT_IPV6 : ZT_IPV4;
    *rcode = ZT_DNS_NOERROR;
    if (!is_address_question(q))
        return false;
    if (!(client && zt_dns_resolve(s->w->dns, client, q->name, family, NULL, a)) && !resolve_special(q, a, rcode))
        return false;
    if (*rcode == ZT_DNS_NOERROR)
        dns_log(q, client, "success", a->owner[0] && a->n_ips ? 1 : 0, NULL);
    return true;
}

static void answer_here(struct zt_dns_server *s, const struct dns_origin *o, const struct zt_dns_query *q, enum zt_dns_rcode rcode)
{
    if (rcode != ZT_DNS_NOERROR)
        send_error(s, o, q, rcode);
    else
        send_reply(s, o, zt_dns_reply_addresses(q, &s->w->answer, limit_of(o, q), s->w->reply + 2));
}

/* ---- limits ---- */

static bool take_token(struct zt_dns_server *s)
{
    uint64_t now = zt_loop_now_ms(s->w->loop);
    s->tokens += (double)(now - s->tokens_ms) * ZT_DNS_POD_FORWARD_RATE / 1000.;
    s->tokens_ms = now;
    if (s->tokens > TOKENS_MAX)
        s->tokens = TOKENS_MAX;
    if (s->tokens < 1)
        return false;
    s->tokens -= 1;
    return true;
}

static bool may_wait(struct zt_dns_server *s, const struct zt_workload *client)
{
    if (!s->draining && s->n_requests < ZT_DNS_POD_REQUESTS_MAX && s->n_flights < ZT_DNS_POD_REQUESTS_MAX && take_token(s))
        return true;
    dns_count_limited(s, client);
    return false;
}

/* ---- requests that wait ---- */

struct zt_dns_request *dns_request_new(struct zt_dns_server *s, const struct dns_origin *o, const struct zt_dns_query *q,
                                       struct zt_workload *client)
{
    struct zt_dns_request *r = zt_new(struct zt_dns_request);
    r->server = s;
    r->q = *q;
    r->origin = *o;
    r->client = client;
    r->started_us = zt_clock_mono_us();
    ev_init(&r->timer, NULL);
    zt_list_push_back(&s->requests, &r->server_link);
    s->n_requests++;
    if (o->kind == ORIGIN_TCP)
        dns_conn_waits_for(o->conn, r);
    return r;
}

void dns_request_free(struct zt_dns_request *r)
{
    struct zt_dns_server *s = r->server;
    dns_forward_leave(r);
    ev_timer_stop(ev_of(s), &r->timer);
    zt_task_cancel(&r->task);
    if (r->origin.kind == ORIGIN_TCP && r->origin.conn)
        dns_conn_waits_for(r->origin.conn, NULL);
    if (r->origin.kind == ORIGIN_LOOKUP && r->origin.lookup)
        r->origin.lookup->request = NULL;
    zt_workload_unref(r->client);
    zt_list_remove(&r->server_link);
    s->n_requests--;
    zt_loop_defer_zt_free(s->w->loop, r);
    dns_server_less_to_do(s);
}

static void run_lookup_done(struct zt_task *t)
{
    struct zt_dns_request *r = zt_container_of(t, struct zt_dns_request, task);
    struct zt_dns_lookup *l = r->origin.lookup;
    dns_request_free(r);
    l->done(l);
}

/* The lookup has its result, or none. */
static void finish_lookup(struct zt_dns_request *r)
{
    dns_forward_leave(r);
    ev_timer_stop(ev_of(r->server), &r->timer);
    r->task.run = run_lookup_done;
    zt_loop_soon(r->server->w->loop, &r->task);
}

static void finish_here(struct zt_dns_request *r, enum zt_dns_rcode rcode)
{
    const struct zt_name_answer *a = &r->server->w->answer;
    struct zt_dns_lookup *l = r->origin.lookup;
    if (r->origin.kind == ORIGIN_LOOKUP) {
        l->answered = true;
        l->n_ips = rcode != ZT_DNS_NOERROR ? 0 : a->n_ips < ZT_DNS_LOOKUP_IPS_MAX ? a->n_ips : ZT_DNS_LOOKUP_IPS_MAX;
        if (l->n_ips > 0)
            memcpy(l->ips, a->ips, l->n_ips * sizeof *l->ips);
        finish_lookup(r);
        return;
    }
    answer_here(r->server, &r->origin, &r->q, rcode);
    dns_request_free(r);
}

void dns_request_answered(struct zt_dns_request *r, const uint8_t *wire, size_t len, uint32_t age_s, bool stale)
{
    struct zt_dns_server *s = r->server;
    enum zt_dns_rcode rcode = (enum zt_dns_rcode)(wire[3] & 0xf);
    bool some = wire[6] || wire[7];
    if (stale)
        dns_cache_count_stale(s->w->dns->cache);
    dns_count_forwarded(r, rcode != ZT_DNS_NOERROR || !some);
    if (rcode == ZT_DNS_NOERROR)
        dns_log(&r->q, r->client, "forwarded", (unsigned)(wire[6] << 8 | wire[7]), NULL);
    else
        dns_log(&r->q, r->client, NULL, 0, zt_dns_rcode_name(rcode));
    if (r->origin.kind == ORIGIN_LOOKUP) {
        r->origin.lookup->answered = rcode == ZT_DNS_NOERROR;
        r->origin.lookup->n_ips = zt_dns_response_addresses(wire, len, &r->q, r->origin.lookup->ips, ZT_DNS_LOOKUP_IPS_MAX);
        finish_lookup(r);
        return;
    }
    size_t n = zt_dns_reply_forwarded(&r->q, wire, len, age_s, stale, limit_of(&r->origin, &r->q), s->w->reply + 2);
    send_reply(s, &r->origin, n);
    dns_request_free(r);
}

void dns_request_failed(struct zt_dns_request *r, const char *why)
{
    dns_count_forwarded(r, true);
    dns_log(&r->q, r->client, NULL, 0, why);
    if (r->origin.kind == ORIGIN_LOOKUP) {
        finish_lookup(r);
        return;
    }
    send_error(r->server, &r->origin, &r->q, ZT_DNS_SERVFAIL);
    dns_request_free(r);
}

/* The client is known (or the daemon itself). */
static void proceed(struct zt_dns_request *r)
{
    enum zt_dns_rcode rcode;
    if (resolve_here(r->server, &r->q, r->client, &rcode))
        finish_here(r, rcode);
    else
        dns_forward(r);
}

static void on_unknown_client(struct ev_loop *ev, ev_timer *t, int revents)
{
    struct zt_dns_request *r = zt_container_of(t, struct zt_dns_request, timer);
    struct zt_dns_server *s = r->server;
    dns_count_request(s, &r->q, r->origin.kind == ORIGIN_TCP, NULL);
    zt_log_debug("dns", "the workload of %s/%s is not known yet: its questions fail", s->ns, s->name);
    if (r->origin.kind == ORIGIN_LOOKUP) {
        finish_lookup(r);
        return;
    }
    send_error(s, &r->origin, &r->q, ZT_DNS_SERVFAIL);
    dns_request_free(r);
}

static void wait_for_client(struct zt_dns_request *r)
{
    struct zt_dns_server *s = r->server;
    ev_timer_init(&r->timer, on_unknown_client, s->w->dns->config.local_workload_wait_ms / 1000.0, 0.);
    ev_timer_start(ev_of(s), &r->timer);
}

void dns_request_state_changed(struct zt_dns_request *r)
{
    struct zt_dns_server *s = r->server;
    if (r->client || r->flight || zt_link_linked(&r->task.task_link) || !ev_is_active(&r->timer))
        return;
    r->client = zt_store_find_local(s->w->dns->store, s->ns, s->name, s->service_account);
    if (!r->client)
        return;
    ev_timer_stop(ev_of(s), &r->timer);
    dns_count_request(s, &r->q, r->origin.kind == ORIGIN_TCP, r->client);
    proceed(r);
}

/* ---- what comes in ---- */

static void handle_question(struct zt_dns_server *s, const struct dns_origin *o, const struct zt_dns_query *q)
{
    enum zt_dns_rcode rcode;
    struct zt_workload *client = zt_store_find_local(s->w->dns->store, s->ns, s->name, s->service_account);
    if (client)
        dns_count_request(s, q, o->kind == ORIGIN_TCP, client);
    if (client && resolve_here(s, q, client, &rcode)) {
        answer_here(s, o, q, rcode);
    } else if (!may_wait(s, client)) {
        send_error(s, o, q, ZT_DNS_SERVFAIL);
    } else {
        struct zt_dns_request *r = dns_request_new(s, o, q, client);
        if (client)
            dns_forward(r);
        else
            wait_for_client(r);
        return;
    }
    zt_workload_unref(client);
}

void dns_handle(struct zt_dns_server *s, const struct dns_origin *o, const uint8_t *wire, size_t len)
{
    struct zt_dns_query q;
    enum zt_dns_rcode rcode;
    switch (zt_dns_query_parse(wire, len, &q, &rcode)) {
    case ZT_DNS_DROP:
        if (o->kind == ORIGIN_TCP) /* whoever waits must not wait for nothing */
            dns_conn_reply(o->conn, 0);
        break;
    case ZT_DNS_ERROR:
        send_error(s, o, &q, rcode);
        break;
    case ZT_DNS_OK:
        handle_question(s, o, &q);
        break;
    }
}

/* ---- lookups ---- */

bool zt_dns_lookup_start(struct zt_dns_lookup *l, struct zt_dns_server *s, const char *host, enum zt_family family)
{
    struct zt_dns_query q;
    const struct dns_origin o = {.kind = ORIGIN_LOOKUP, .lookup = l};
    l->n_ips = 0;
    l->answered = false;
    if (s->stopped || !zt_dns_query_from_text(host, family == ZT_IPV6 ? ZT_DNS_AAAA : ZT_DNS_A, &q))
        return false;
    struct zt_workload *client =
        s->name ? zt_store_find_local(s->w->dns->store, s->ns, s->name, s->service_account) : NULL;
    bool allowed = !s->name || may_wait(s, client);
    struct zt_dns_request *r = dns_request_new(s, &o, &q, client);
    l->request = r;
    if (!allowed)
        finish_lookup(r);
    else if (s->name && !client)
        wait_for_client(r);
    else
        proceed(r);
    return true;
}

void zt_dns_lookup_cancel(struct zt_dns_lookup *l)
{
    if (l->request)
        dns_request_free(l->request);
}
