/* The configuration dump (spec/interfaces §4.4, §7.4). */
#include "zt/config/dump.h"

#include "zt/base/mem.h"
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

#define TEXT_MAX (1 << 20)

static struct zt_config *make(void)
{
    char *env[] = {(char[]){"LOCAL_CA_PATH=/ca"},       (char[]){"XDS_ADDRESS="},
                          (char[]){"AUTH_TOKEN=sesame"},       (char[]){"XDS_HEADER_HEADER_FOO=foo"},
                          (char[]){"CA_HEADER_AUTHORIZATION=Bearer sesame"}, (char[]){"ISTIO_META_DNS_CAPTURE=false"},
                          (char[]){"ISTIO_META_A=b: c"},       (char[]){"IPV6_ENABLED=false"},
                          (char[]){"POD_NAME=z"},              (char[]){"POD_NAMESPACE=istio-system"},
                          (char[]){"SERVICE_ACCOUNT=ztunnel"}, (char[]){"XDS_ROOT_CA=SYSTEM"}, NULL};
    struct zt_config_source src = {.env = env, .mesh_path = "/nonexistent/mesh", .resolv_path = "/nonexistent/resolv"};
    struct zt_config *c = NULL;
    assert_int_equal(zt_config_read(&src, &c, NULL), ZT_OK);
    return c;
}

static void write_json(struct zt_str *s)
{
    struct zt_json j;
    struct zt_config *c = make();
    zt_str_init(s, TEXT_MAX);
    zt_json_init(&j, s, true);
    zt_config_write_json(c, &j);
    zt_config_free(c);
}

static void dump_is_json_with_the_reference_s_members(void **state)
{
    struct zt_str s;
    write_json(&s);
    json_t *root = json_loads(zt_str_cstr(&s), JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(root);
    assert_true(json_is_null(json_object_get(root, "xdsAddress")));
    assert_int_equal(json_integer_value(json_object_get(json_object_get(root, "secretTtl"), "secs")), 86400);
    assert_string_equal(json_string_value(json_object_get(root, "inboundAddr")), "0.0.0.0:15008");
    json_t *admin = json_object_get(json_object_get(root, "adminAddr"), "Localhost");
    assert_true(json_is_false(json_array_get(admin, 0)));
    assert_int_equal(json_integer_value(json_array_get(admin, 1)), 15000);
    json_t *header = json_array_get(json_object_get(root, "xdsHeaders"), 0);
    assert_string_equal(json_string_value(json_array_get(header, 0)), "header_foo");
    assert_string_equal(json_string_value(json_array_get(header, 1)), "foo");
    assert_string_equal(json_string_value(json_object_get(root, "ztunnelIdentity")), "spiffe://cluster.local/ns/istio-system/sa/ztunnel");
    assert_string_equal(json_string_value(json_object_get(root, "xdsRootCert")), "System");
    assert_non_null(json_object_get(json_object_get(root, "caRootCert"), "File"));
    json_decref(root);
    zt_str_fini(&s);
}

static void check_sorted(json_t *value)
{
    const char *key, *last = "";
    json_t *child;
    size_t i;
    if (json_is_object(value)) {
        json_object_foreach (value, key, child) { /* jansson keeps the order of the text */
            if (strcmp(last, key) >= 0)
                fail_msg("`%s` comes after `%s`", key, last);
            last = key;
            check_sorted(child);
        }
    } else if (json_is_array(value)) {
        json_array_foreach (value, i, child)
            check_sorted(child);
    }
}

static void dump_keys_ascend_in_every_object(void **state)
{
    struct zt_str s;
    write_json(&s);
    json_t *root = json_loads(zt_str_cstr(&s), 0, NULL);
    check_sorted(root);
    json_decref(root);
    zt_str_fini(&s);
}

static void dump_never_shows_a_token(void **state)
{
    struct zt_str s, yaml;
    struct zt_config *c = make();
    write_json(&s);
    zt_str_init(&yaml, TEXT_MAX);
    zt_config_write_yaml(c, &yaml);
    assert_null(strstr(zt_str_cstr(&s), "sesame"));
    assert_null(strstr(zt_str_cstr(&yaml), "sesame"));
    zt_str_fini(&s);
    zt_str_fini(&yaml);
    zt_config_free(c);
}

static void yaml_tags_variants_and_quotes_what_needs_it(void **state)
{
    struct zt_str s;
    struct zt_config *c = make();
    zt_str_init(&s, TEXT_MAX);
    zt_config_write_yaml(c, &s);
    const char *text = zt_str_cstr(&s);
    assert_non_null(strstr(text, "adminAddr: !Localhost\n- false\n- 15000\n"));
    assert_non_null(strstr(text, "caRootCert: !File ./var/run/secrets/istio/root-cert.pem\n"));
    assert_non_null(strstr(text, "xdsHeaders:\n- - header_foo\n  - foo\n"));
    assert_non_null(strstr(text, "proxyMetadata:\n  A: \"b: c\"\n"));
    assert_non_null(strstr(text, "  name_servers: []\n"));
    assert_non_null(strstr(text, "xdsAddress: null\n"));
    assert_int_equal(text[s.len - 1], '\n');
    zt_str_fini(&s);
    zt_config_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dump_is_json_with_the_reference_s_members),
        cmocka_unit_test(dump_keys_ascend_in_every_object),
        cmocka_unit_test(dump_never_shows_a_token),
        cmocka_unit_test(yaml_tags_variants_and_quotes_what_needs_it),
    };
    return cmocka_run_group_tests_name("dump", tests, NULL, NULL);
}
