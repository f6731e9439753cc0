/* The three verbs, inside the namespace: what is done in which order, and how check compares.
 *
 * apply:  probe for istio-cni, route, policy rule, packet rules. Packet rules last: without the route every captured inbound
 *         connection would hang, without the rules nothing is captured yet.
 * remove: packet rules, then rule and route. Where nothing of ours is left it touches nothing, even beside istio-cni, whose
 *         rule and route are the same as ours.
 * Both also see to the rules that we made with another back end.
 * check:  our rules as listed here against our rules as listed in an empty namespace where the plan was just applied;
 *         then the rule and the route. The child leaves the pod's namespace for that and does not come back. */
#include "redirect_impl.h"
#include <errno.h>
#include <ifaddrs.h>
#include <sched.h>
#include <string.h>

#define WANTED_MAX (2u << 20) /* bytes of a listing to compare with */

static const char *const backend_names[] = {"nft", "iptables-nft", "iptables-legacy"};
static const char *const outcome_names[] = {"done", "absent", "differs", "refused", "failed", "timeout"};

bool zt_redirect_backend_parse(const char *text, enum zt_redirect_backend *out)
{
    for (size_t i = 0; i < sizeof backend_names / sizeof *backend_names; i++) {
        if (strcmp(text, backend_names[i]) == 0) {
            *out = (enum zt_redirect_backend)i;
            return true;
        }
    }
    return false;
}

const char *zt_redirect_backend_name(enum zt_redirect_backend b)
{
    return backend_names[b];
}

const char *zt_redirect_outcome_name(enum zt_redirect_outcome o)
{
    return outcome_names[o];
}

const struct backend *zt_backend_get(enum zt_redirect_backend b)
{
    switch (b) {
    case ZT_REDIRECT_IPTABLES_NFT:
        return &zt_backend_iptables_nft;
    case ZT_REDIRECT_IPTABLES_LEGACY:
        return &zt_backend_iptables_legacy;
    case ZT_REDIRECT_NFT:
        break;
    }
    return &zt_backend_nft;
}

/* The kernel's rule for names, less what would need quoting in a rule program's input. */
static bool interface_name_is_sound(const char *name)
{
    size_t n = strnlen(name, IFNAMSIZ);
    if (n == 0 || n == IFNAMSIZ)
        return false;
    return strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-@:") == n && name[0] != '-';
}

enum zt_err zt_redirect_plan_check(const struct zt_redirect_plan *plan, struct zt_error *err)
{
    if (plan->n_interfaces > ZT_REDIRECT_INTERFACES_MAX)
        return zt_error_set(err, ZT_INVALID, "more than %d virtual interfaces", ZT_REDIRECT_INTERFACES_MAX);
    for (unsigned i = 0; i < plan->n_interfaces; i++)
        if (!interface_name_is_sound(plan->interfaces[i]))
            return zt_error_set(err, ZT_INVALID, "\"%.*s\" is not the name of an interface", IFNAMSIZ, plan->interfaces[i]);
    return ZT_OK;
}

void zt_rules_result(struct zt_redirect_result *out, enum zt_err e, const struct zt_error *err)
{
    switch (e) {
    case ZT_OK:
        out->outcome = ZT_REDIRECT_DONE;
        out->text[0] = '\0';
        return;
    case ZT_EXISTS:
        out->outcome = ZT_REDIRECT_REFUSED;
        break;
    case ZT_TIMEOUT:
        out->outcome = ZT_REDIRECT_TIMEOUT;
        break;
    default:
        out->outcome = ZT_REDIRECT_FAILED;
        break;
    }
    zt_fmt(out->text, sizeof out->text, "%s", err->text);
}

/* Ours by the back ends of which gone is set. */
static enum zt_err remove_by(const struct zt_redirect_plan *plan, const bool gone[static N_BACKENDS], uint64_t deadline_ms,
                             struct zt_error *err)
{
    enum zt_err e = ZT_OK;
    for (int b = 0; b < N_BACKENDS && e == ZT_OK; b++)
        if (gone[b])
            e = zt_backend_get((enum zt_redirect_backend)b)->remove(plan, deadline_ms, err);
    return e;
}

static enum zt_err apply(const struct zt_redirect_plan *plan, uint64_t deadline_ms, struct zt_error *err)
{
    bool left_over[N_BACKENDS] = {false};
    enum zt_err e = zt_rules_probe(deadline_ms, left_over, err);
    if (e == ZT_OK)
        e = zt_policy_route_apply(plan->ipv6, err);
    if (e == ZT_OK)
        e = zt_backend_get(plan->backend)->apply(plan, deadline_ms, err);
    left_over[plan->backend] = false;
    return e == ZT_OK ? remove_by(plan, left_over, deadline_ms, err) : e;
}

static enum zt_err remove_all(const struct zt_redirect_plan *plan, uint64_t deadline_ms, struct zt_error *err)
{
    bool ours[N_BACKENDS] = {false}, any = false;
    enum zt_err e = zt_rules_probe(deadline_ms, ours, err);
    for (int b = 0; b < N_BACKENDS; b++)
        any |= ours[b];
    if (e == ZT_EXISTS && !any)
        return ZT_OK;
    if (e == ZT_OK)
        e = remove_by(plan, ours, deadline_ms, err);
    return e == ZT_OK ? zt_policy_route_remove(err) : e;
}

/* The next line of *text into line; false at the end. */
static bool next_line(const char **text, const char **line, size_t *len)
{
    if (!**text)
        return false;
    *line = *text;
    *len = strcspn(*text, "\n");
    *text += *len + ((*text)[*len] == '\n');
    return true;
}

static bool has_line(const char *text, const char *line, size_t len)
{
    const char *l;
    size_t n;
    while (next_line(&text, &l, &n))
        if (n == len && memcmp(l, line, n) == 0)
            return true;
    return false;
}

/* The lines of a that b has not, without their indentation. */
static void add_missing(struct zt_str *out, const char *a, const char *b, const char *what)
{
    const char *line;
    size_t n;
    while (next_line(&a, &line, &n)) {
        if (has_line(b, line, n))
            continue;
        size_t indent = strspn(line, " \t");
        if (indent < n)
            zt_str_addf(out, "%s%s: %.*s", out->len ? "; " : "", what, (int)(n - indent), line + indent);
    }
}

static void compare(const char *wanted, const char *there, struct zt_redirect_result *out)
{
    struct zt_str s;
    if (strcmp(wanted, there) == 0)
        return;
    zt_str_init(&s, sizeof out->text - 1);
    add_missing(&s, wanted, there, "missing");
    add_missing(&s, there, wanted, "unexpected");
    if (!s.len)
        zt_str_add(&s, "the same rules in another order or number");
    out->outcome = ZT_REDIRECT_DIFFERS;
    zt_fmt(out->text, sizeof out->text, "%s", zt_str_cstr(&s));
    zt_str_fini(&s);
}

enum zt_err zt_rules_compare(zt_rules_list_fn make_and_list, const void *arg, const char *there, const char *more, uint64_t deadline_ms,
                             struct zt_redirect_result *out, struct zt_error *err)
{
    struct zt_str wanted;
    if (unshare(CLONE_NEWNET) < 0)
        return zt_error_set_errno(err, ZT_IO, errno, "cannot make a network namespace to compare with");
    zt_str_init(&wanted, WANTED_MAX);
    enum zt_err e = make_and_list(arg, deadline_ms, &wanted, err);
    zt_str_add(&wanted, more);
    if (e == ZT_OK)
        compare(zt_str_cstr(&wanted), there, out);
    zt_str_fini(&wanted);
    return e;
}

static enum zt_err list_wanted(const void *arg, uint64_t deadline_ms, struct zt_str *out, struct zt_error *err)
{
    const struct zt_redirect_plan *plan = arg;
    const struct backend *b = zt_backend_get(plan->backend);
    enum zt_err e = b->apply(plan, deadline_ms, err);
    return e == ZT_OK ? b->dump(plan, deadline_ms, out, err) : e;
}

static void check(const struct zt_redirect_plan *plan, uint64_t deadline_ms, struct zt_redirect_result *out)
{
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_str there;
    zt_str_init(&there, DUMP_MAX);
    bool ours[N_BACKENDS] = {false};
    enum zt_err e = zt_rules_probe(deadline_ms, ours, &err);
    for (int b = 0; b < N_BACKENDS; b++)
        if (e == ZT_OK && (ours[b] || b == (int)plan->backend))
            e = zt_backend_get((enum zt_redirect_backend)b)->dump(plan, deadline_ms, &there, &err);
    bool any = there.len > 0;
    if (e == ZT_OK)
        e = zt_policy_route_dump(&there, &err);
    if (e == ZT_OK && !there.len) {
        out->outcome = ZT_REDIRECT_ABSENT;
        zt_fmt(out->text, sizeof out->text, "no rules of ours");
    } else if (e == ZT_OK) {
        struct zt_str routes;
        zt_str_init(&routes, DUMP_MAX);
        zt_policy_route_wanted(plan->ipv6, &routes); /* while still in the pod's namespace */
        e = zt_rules_compare(list_wanted, plan, zt_str_cstr(&there), zt_str_cstr(&routes), deadline_ms, out, &err);
        zt_str_fini(&routes);
        if (e == ZT_OK && !any && out->outcome == ZT_REDIRECT_DIFFERS)
            zt_fmt(out->text, sizeof out->text, "policy rule or route without packet rules");
    }
    if (e != ZT_OK)
        zt_rules_result(out, e, &err);
    zt_str_fini(&there);
}

/* Where probes of this pod go to: what is neither on loopback nor of its link only. */
static void find_addresses(struct zt_redirect_result *out)
{
    struct ifaddrs *all = NULL;
    if (getifaddrs(&all) < 0)
        return;
    for (const struct ifaddrs *i = all; i && out->n_ips < ZT_REDIRECT_IPS_MAX; i = i->ifa_next) {
        struct zt_ip ip = i->ifa_addr ? zt_addr_from_sockaddr(i->ifa_addr).ip : (struct zt_ip){0};
        bool link_local = ip.family == ZT_IPV4 ? ip.bytes[0] == 169 && ip.bytes[1] == 254 : ip.bytes[0] == 0xfe && (ip.bytes[1] & 0xc0) == 0x80;
        if (ip.family && !(i->ifa_flags & IFF_LOOPBACK) && !link_local)
            out->ips[out->n_ips++] = ip;
    }
    freeifaddrs(all);
}

void zt_rules_do(const void *arg, enum zt_redirect_verb verb, uint64_t deadline_ms, struct zt_redirect_result *out)
{
    const struct zt_redirect_plan *plan = arg;
    struct zt_error err = ZT_ERROR_INIT;
    switch (verb) {
    case ZT_REDIRECT_APPLY:
        zt_rules_result(out, apply(plan, deadline_ms, &err), &err);
        find_addresses(out);
        return;
    case ZT_REDIRECT_REMOVE:
        zt_rules_result(out, remove_all(plan, deadline_ms, &err), &err);
        return;
    case ZT_REDIRECT_CHECK:
        check(plan, deadline_ms, out);
        return;
    }
    ZT_ASSERT(!"unknown verb");
}
