/* See state_fixture.h. */
#include "support/state_fixture.h"

#include "state/state_impl.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

struct zt_ip state_ip(const char *text)
{
    struct zt_ip ip;
    assert_true(zt_ip_parse(text, &ip));
    return ip;
}

struct zt_addr state_addr(const char *text)
{
    struct zt_addr a;
    assert_true(zt_addr_parse(text, &a));
    return a;
}

struct zt_cidr state_cidr(const char *text)
{
    struct zt_cidr c;
    assert_true(zt_cidr_parse(text, &c));
    return c;
}

const char *state_tail(const char *uid)
{
    const char *slash = strrchr(uid, '/');
    return slash ? slash + 1 : uid;
}

const struct zt_ip *state_ips(struct zt_ip *out, const char *const *text, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = state_ip(text[i]);
    return out;
}

const struct zt_vip *state_vips(struct zt_vip *out, const char *network, const char *const *text,
                                size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (struct zt_vip){.network = network, .cidr = state_cidr(text[i])};
    return out;
}

int state_setup(void **state)
{
    *state = zt_store_new(&(struct zt_store_config){.network = "", .node = STATE_NODE});
    return 0;
}

int state_teardown(void **state)
{
    zt_store_free(*state);
    assert_int_equal(zt_text_count(), 0); /* every record is gone, so every shared string is */
    return 0;
}

void state_add(struct zt_batch *b, const struct zt_workload *w)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_workload *own;
    if (zt_workload_new(w, &own, &err) != ZT_OK)
        fail_msg("%s", err.text);
    zt_batch_put_workload(b, own);
}

void state_add_service(struct zt_batch *b, const struct zt_service *v)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_service *own;
    if (zt_service_new(v, &own, &err) != ZT_OK)
        fail_msg("%s", err.text);
    zt_batch_put_service(b, own);
}

void state_add_policy(struct zt_batch *b, const struct zt_policy *p)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_policy *own;
    if (zt_policy_new(p, &own, &err) != ZT_OK)
        fail_msg("%s", err.text);
    zt_batch_put_policy(b, own);
}

void state_apply(struct zt_store *s, struct zt_batch *b)
{
    struct zt_store_changes c;
    zt_store_apply(s, b, &c);
    zt_store_changes_fini(&c);
}

void state_put_from(struct zt_store *s, enum zt_origin o, const struct zt_workload *w)
{
    struct zt_batch *b = zt_batch_new(o);
    state_add(b, w);
    state_apply(s, b);
}

void state_put(struct zt_store *s, const struct zt_workload *w)
{
    state_put_from(s, ZT_ORIGIN_XDS, w);
}

void state_put_service(struct zt_store *s, const struct zt_service *v)
{
    struct zt_batch *b = zt_batch_new(ZT_ORIGIN_XDS);
    state_add_service(b, v);
    state_apply(s, b);
}

void state_put_policy(struct zt_store *s, const struct zt_policy *p)
{
    struct zt_batch *b = zt_batch_new(ZT_ORIGIN_XDS);
    state_add_policy(b, p);
    state_apply(s, b);
}

void state_remove(struct zt_store *s, const char *uid)
{
    struct zt_batch *b = zt_batch_new(ZT_ORIGIN_XDS);
    zt_batch_remove_workload(b, uid);
    state_apply(s, b);
}

void state_remove_service(struct zt_store *s, const char *ns, const char *hostname)
{
    struct zt_batch *b = zt_batch_new(ZT_ORIGIN_XDS);
    zt_batch_remove_service(b, ns, hostname);
    state_apply(s, b);
}

void state_remove_policy(struct zt_store *s, const char *key)
{
    struct zt_batch *b = zt_batch_new(ZT_ORIGIN_XDS);
    zt_batch_remove_policy(b, key);
    state_apply(s, b);
}

struct endpoint_count {
    size_t all, healthy;
};

static void count_endpoint(void *arg, const char *uid, const struct zt_port_map *ports, unsigned n,
                           bool healthy)
{
    (void)uid;
    (void)ports;
    (void)n;
    struct endpoint_count *c = arg;
    c->all++;
    c->healthy += healthy;
}

size_t state_endpoints(struct zt_store *s, const char *ns, const char *hostname, bool healthy_only)
{
    struct endpoint_count c = {0};
    zt_store_each_endpoint(s, ns, hostname, count_endpoint, &c);
    return healthy_only ? c.healthy : c.all;
}

static void count_staged(void *arg, const char *ns, const char *hostname)
{
    (void)ns;
    (void)hostname;
    ++*(size_t *)arg;
}

static void ignore_endpoint(void *arg, const char *uid, const struct zt_port_map *ports, unsigned n,
                            bool healthy)
{
    (void)arg;
    (void)uid;
    (void)ports;
    (void)n;
    (void)healthy;
}

size_t state_staged(struct zt_store *s)
{
    size_t n = 0;
    zt_store_each_staged(s, count_staged, ignore_endpoint, &n);
    return n;
}

static const char *service_name(struct zt_service *v)
{
    static char text[1024];
    if (!v)
        return NULL;
    assert_true(zt_fmt(text, sizeof text, "%s/%s", v->ns, v->hostname));
    zt_service_unref(v);
    return text;
}

const char *state_service_at(struct zt_store *s, const char *network, const char *ip,
                             const char *client_ns)
{
    struct zt_ip addr = state_ip(ip);
    return service_name(zt_store_service_at(s, network, &addr, client_ns));
}

const char *state_service_named(struct zt_store *s, const char *hostname, const char *client_ns)
{
    return service_name(zt_store_service_by_hostname(s, hostname, client_ns));
}

const char *state_uid_at(struct zt_store *s, const char *network, const char *ip)
{
    static char text[1024];
    struct zt_ip addr = state_ip(ip);
    struct zt_workload *w = zt_store_workload_at(s, network, &addr);
    if (!w)
        return NULL;
    assert_true(zt_fmt(text, sizeof text, "%s", w->uid));
    zt_workload_unref(w);
    return text;
}
