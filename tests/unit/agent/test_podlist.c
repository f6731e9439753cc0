#include "zt/agent/podlist.h"
#include "zt/base/mem.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define POD(uid, path) "- uid: " uid "\n  namespace: ns1\n  name: sleep\n  serviceAccount: sa\n  netns: " path "\n"

static struct zt_podlist *parse(const char *text)
{
    struct zt_podlist *l = NULL;
    struct zt_error err = ZT_ERROR_INIT;
    if (zt_podlist_parse("f", text, strlen(text), &l, &err) != ZT_OK)
        fail_msg("%s", err.text);
    return l;
}

static void refused(const char *text, const char *because)
{
    struct zt_podlist *l = NULL;
    struct zt_error err = ZT_ERROR_INIT;
    assert_int_equal(zt_podlist_parse("f", text, strlen(text), &l, &err), ZT_INVALID);
    if (!strstr(err.text, because))
        fail_msg("\"%s\" does not say \"%s\"", err.text, because);
}

static void podlist_reads_every_field(void **state)
{
    struct zt_podlist *l = parse("pods:\n" POD("u1", "/run/netns/a") POD("u2", "/run/netns/b"));
    assert_int_equal(l->n_pods, 2);
    assert_string_equal(l->pods[0].uid, "u1");
    assert_string_equal(l->pods[0].ns, "ns1");
    assert_string_equal(l->pods[0].name, "sleep");
    assert_string_equal(l->pods[0].service_account, "sa");
    assert_string_equal(l->pods[1].netns, "/run/netns/b");
    assert_int_equal(l->pods[1].line, 7);
    zt_podlist_free(l);
}

static void podlist_reads_an_empty_list_as_no_pods(void **state)
{
    struct zt_podlist *l = parse("pods: []\n");
    assert_int_equal(l->n_pods, 0);
    zt_podlist_free(l);
}

/* An editor truncates before it writes: that must not un-enrol the node. */
static void podlist_refuses_an_empty_file(void **state)
{
    refused("", "the file is empty");
    refused("# only a comment\n", "the file is empty");
    refused("{}", "missing key `pods`");
    refused("pods:\n", "expected a list");
}

static void podlist_names_line_and_column_of_a_mistake(void **state)
{
    refused("pods:\n" POD("u1", "/a") "- uid: u2\n  nme: x\n", "f:8:3: pods[1].nme: unknown key");
    refused("pods:\n- uid: \"a\n", "f:3:1: ");
    refused("pods:\n- uid: a\n  uid: b\n", "f:3:3: pods[0].uid: the key is given twice");
    refused("pods:\n- hello\n", "f:2:3: pods[0]: expected a map");
    refused("pods:\n" POD("u1", "relative"), "pods[0]: the pod of line 2: netns \"relative\" is not an absolute path");
    refused("pods:\n- uid: u\n", "f:2:3: pods[0]: missing key `namespace`");
}

static void podlist_refuses_what_would_make_another_identity(void **state)
{
    refused("pods:\n- {uid: u, namespace: a/b, name: n, serviceAccount: s, netns: /x}\n", "namespace \"a/b\"");
    refused("pods:\n- {uid: u, namespace: a, name: n, serviceAccount: 's/../t', netns: /x}\n", "serviceAccount");
    refused("pods:\n- {uid: 'u v', namespace: a, name: n, serviceAccount: s, netns: /x}\n", "uid holds");
    refused("pods:\n- {uid: u, namespace: a, name: \"n\\0m\", serviceAccount: s, netns: /x}\n", "NUL");
}

static void podlist_refuses_repetitions(void **state)
{
    refused("pods:\n" POD("u1", "/a") POD("u1", "/b"), "uid \"u1\" is there already");
    refused("pods:\n" POD("u1", "/a") POD("u2", "/a"), "netns /a is there already");
    refused("pods: []\npods: []\n", "given twice");
    refused("pods: []\n---\npods: []\n", "only one YAML document");
}

static void podlist_refuses_aliases_and_long_values(void **state)
{
    char text[4096], value[2001] = "";
    refused("pods:\n- {uid: &a u, namespace: *a, name: n, serviceAccount: s, netns: /x}\n", "aliases");
    memset(value, 'x', sizeof value - 1);
    snprintf(text, sizeof text, "pods:\n- {uid: u, namespace: a, name: n, serviceAccount: s, netns: /%s}\n", value);
    refused(text, "more than 1023 bytes");
}

static void podlist_reads_what_a_pod_wants_otherwise(void **state)
{
    struct zt_podlist *l = parse("pods:\n" POD("u1", "/a") "  bypassInboundCapture: T\n  dnsCapture: 'false'\n  rerouteVirtualInterfaces: eth1, docker0\n" POD("u2", "/b"));
    struct zt_redirect_plan plan = ZT_REDIRECT_PLAN_INIT;
    struct zt_error err = ZT_ERROR_INIT;
    plan.dns_capture = true;
    assert_int_equal(zt_podlist_pod_plan(&l->pods[1], &plan, &err), ZT_OK);
    assert_true(plan.dns_capture && !plan.ingress_mode && plan.n_interfaces == 0);
    assert_int_equal(zt_podlist_pod_plan(&l->pods[0], &plan, &err), ZT_OK);
    assert_true(!plan.dns_capture && plan.ingress_mode);
    assert_int_equal(plan.n_interfaces, 2);
    assert_string_equal(plan.interfaces[0], "eth1");
    assert_string_equal(plan.interfaces[1], "docker0");
    assert_false(zt_podlist_pod_equal(&l->pods[0], &l->pods[1]));
    zt_podlist_free(l);
}

static void podlist_refuses_what_a_pod_cannot_want(void **state)
{
    refused("pods:\n" POD("u1", "/a") "  dnsCapture: yes\n", "dnsCapture \"yes\" is neither true nor false");
    refused("pods:\n" POD("u1", "/a") "  bypassInboundCapture: ''\n", "bypassInboundCapture: must not be empty");
    refused("pods:\n" POD("u1", "/a") "  rerouteVirtualInterfaces: 'eth0; reboot'\n", "is not the name of an interface");
    refused("pods:\n" POD("u1", "/a") "  rerouteVirtualInterfaces: a,b,c,d,e,f,g,h,i\n", "more than 8");
}

static void podlist_stops_at_its_limit(void **state)
{
    struct zt_podlist *l = zt_podlist_new();
    struct zt_error err = ZT_ERROR_INIT;
    char uid[16], path[16];
    struct zt_podlist_pod p = {.uid = uid, .ns = uid, .name = uid, .service_account = uid, .netns = path};
    for (unsigned i = 0; i < ZT_PODLIST_MAX; i++) {
        snprintf(uid, sizeof uid, "u%u", i);
        snprintf(path, sizeof path, "/%u", i);
        assert_int_equal(zt_podlist_add(l, &p, &err), ZT_OK);
    }
    snprintf(uid, sizeof uid, "more");
    snprintf(path, sizeof path, "/more");
    assert_int_equal(zt_podlist_add(l, &p, &err), ZT_LIMIT);
    zt_podlist_free(l);
}

static void podlist_finds_by_uid_and_by_name(void **state)
{
    struct zt_podlist *l = parse("pods:\n" POD("u1", "/a"));
    assert_int_equal(zt_podlist_find(l, "u1"), 0);
    assert_int_equal(zt_podlist_find(l, "ns1/sleep"), 0);
    assert_int_equal(zt_podlist_find(l, "ns1/slee"), 1);
    assert_int_equal(zt_podlist_find(l, "ns/sleep"), 1);
    assert_int_equal(zt_podlist_find(l, "sleep"), 1);
    zt_podlist_free(l);
}

static void podlist_saved_reads_back_the_same(void **state)
{
    char dir[] = "/tmp/test-podlist-XXXXXX", path[64];
    struct zt_error err = ZT_ERROR_INIT;
    struct zt_podlist *l = parse("pods:\n- {uid: 'a:#\"\\', namespace: n, name: n, serviceAccount: s, netns: \"/x y\\\"z\", dnsCapture: true}\n" POD("u2", "/b")), *back = NULL;
    struct stat st;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/pods.yaml", dir);
    assert_int_equal(zt_podlist_save(path, l, &err), ZT_OK);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(zt_podlist_load(path, &back, &err), ZT_OK);
    assert_int_equal(back->n_pods, 2);
    assert_true(zt_podlist_pod_equal(&l->pods[0], &back->pods[0]) && zt_podlist_pod_equal(&l->pods[1], &back->pods[1]));
    zt_podlist_remove(l, 0);
    assert_int_equal(chmod(path, 0640), 0);
    assert_int_equal(zt_podlist_save(path, l, &err), ZT_OK);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);
    zt_podlist_free(l);
    zt_podlist_free(back);
    unlink(path);
    assert_int_equal(rmdir(dir), 0); /* nothing else was left there */
}

static void podlist_load_tells_absent_from_unreadable(void **state)
{
    struct zt_podlist *l = NULL;
    struct zt_error err = ZT_ERROR_INIT;
    assert_int_equal(zt_podlist_load("/nonexistent/pods", &l, &err), ZT_NOT_FOUND);
    assert_int_equal(zt_podlist_load("/proc", &l, &err), ZT_IO);
    assert_int_equal(zt_podlist_load("/dev/zero", &l, &err), ZT_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(podlist_reads_every_field),
        cmocka_unit_test(podlist_reads_an_empty_list_as_no_pods),
        cmocka_unit_test(podlist_refuses_an_empty_file),
        cmocka_unit_test(podlist_names_line_and_column_of_a_mistake),
        cmocka_unit_test(podlist_refuses_what_would_make_another_identity),
        cmocka_unit_test(podlist_refuses_repetitions),
        cmocka_unit_test(podlist_refuses_aliases_and_long_values),
        cmocka_unit_test(podlist_reads_what_a_pod_wants_otherwise),
        cmocka_unit_test(podlist_refuses_what_a_pod_cannot_want),
        cmocka_unit_test(podlist_stops_at_its_limit),
        cmocka_unit_test(podlist_finds_by_uid_and_by_name),
        cmocka_unit_test(podlist_saved_reads_back_the_same),
        cmocka_unit_test(podlist_load_tells_absent_from_unreadable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
