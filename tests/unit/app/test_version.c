/* Build information and the command line (spec/interfaces §1.1, §8, checks C1 to C3 of §11). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "zt/app/app.h"
#include "zt/app/version.h"
#include <cmocka.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void version_C1_has_seven_keys_in_order(void **state)
{
    static const char *const keys[] = {"Version:\"",     "GitRevision:\"",  "RustVersion:\"",   "BuildProfile:\"",
                                       "BuildStatus:\"", "IstioVersion:\"", "CryptoProvider:\""};
    struct zt_str s;
    zt_str_init(&s, 4096);
    zt_version_write(&s);
    assert_int_equal(strncmp(zt_str_cstr(&s), "version.BuildInfo{Version:\"", 27), 0);
    const char *at = zt_str_cstr(&s);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        at = strstr(at, keys[i]);
        assert_non_null(at);
        assert_true(at[strlen(keys[i])] != '"'); /* not empty */
    }
    assert_non_null(strstr(at, "tls-openssl\"}"));
    zt_str_fini(&s);
}

static void version_C2_names_the_istio_version_of_the_environment(void **state)
{
    setenv("ISTIO_META_ISTIO_VERSION", "9.9", 1);
    assert_string_equal(zt_version_get().istio_version, "9.9");
    unsetenv("ISTIO_META_ISTIO_VERSION");
    assert_string_equal(zt_version_get().istio_version, "unknown");
}

static void version_json_has_sorted_keys(void **state)
{
    struct zt_str s;
    struct zt_json j;
    zt_str_init(&s, 4096);
    zt_json_init(&j, &s, true);
    zt_version_write_json(&j);
    json_t *parsed = json_loads(zt_str_cstr(&s), 0, NULL);
    assert_int_equal(json_object_size(parsed), 7);
    char *sorted = json_dumps(parsed, JSON_SORT_KEYS | JSON_INDENT(2));
    assert_string_equal(sorted, zt_str_cstr(&s));
    free(sorted);
    json_decref(parsed);
    zt_str_fini(&s);
}

/* Runs the program in a child, because it starts and stops the log. Returns its exit code; what it said goes to out and err. */
static int run(char *const *argv, char *out, char *err, size_t size)
{
    int out_pipe[2], err_pipe[2], status, argc = 0;
    char *env[] = {NULL};
    assert_int_equal(pipe(out_pipe), 0);
    assert_int_equal(pipe(err_pipe), 0);
    while (argv[argc])
        argc++;
    pid_t pid = fork();
    if (pid == 0) {
        dup2(out_pipe[1], STDOUT_FILENO);
        dup2(err_pipe[1], STDERR_FILENO);
        char **copy = calloc((size_t)argc + 1, sizeof *copy);
        memcpy(copy, argv, (size_t)argc * sizeof *copy);
        int code = zt_app_main(argc, copy, env);
        fflush(NULL);
        _exit(code);
    }
    close(out_pipe[1]);
    close(err_pipe[1]);
    ssize_t n = read(out_pipe[0], out, size - 1);
    out[n > 0 ? n : 0] = '\0';
    n = read(err_pipe[0], err, size - 1);
    err[n > 0 ? n : 0] = '\0';
    close(out_pipe[0]);
    close(err_pipe[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void command_version_prints_one_line(void **state)
{
    char out[4096], err[4096], name[] = "ztunneld", word[] = "version";
    assert_int_equal(run((char *[]){name, word, NULL}, out, err, sizeof out), 0);
    assert_int_equal(strncmp(out, "version.BuildInfo{", 18), 0);
    assert_ptr_equal(strchr(out, '\n'), out + strlen(out) - 1);
    assert_string_equal(err, "");
}

static void command_C3_unknown_prints_help_and_exits_1(void **state)
{
    static const char *const words[] = {"bogus", "--help", "-h", "--version", ""};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        char out[4096], err[4096], expected[64], name[] = "ztunneld", word[16];
        snprintf(word, sizeof word, "%s", words[i]);
        snprintf(expected, sizeof expected, "unknown command: %s\n", words[i]);
        assert_int_equal(run((char *[]){name, word, NULL}, out, err, sizeof out), 1);
        assert_string_equal(err, expected);
        assert_non_null(strstr(out, "\nIstio Ztunnel (version.BuildInfo{"));
        assert_non_null(strstr(out, "\n\nCommands:\nproxy (default) - "));
    }
}

static void command_help_exits_0(void **state)
{
    char out[4096], err[4096], name[] = "ztunneld", word[] = "help";
    assert_int_equal(run((char *[]){name, word, NULL}, out, err, sizeof out), 0);
    assert_non_null(strstr(out, "version "));
    assert_string_equal(err, "");
}

static void command_bad_filter_ends_even_version(void **state)
{
    char out[4096], err[4096], name[] = "ztunneld", word[] = "version";
    setenv("RUST_LOG", "a=b=c", 1);
    assert_int_equal(run((char *[]){name, word, NULL}, out, err, sizeof out), 1);
    unsetenv("RUST_LOG");
    assert_int_equal(strncmp(err, "Error: invalid env var RUST_LOG", 31), 0);
    assert_string_equal(out, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(version_C1_has_seven_keys_in_order),
        cmocka_unit_test(version_C2_names_the_istio_version_of_the_environment),
        cmocka_unit_test(version_json_has_sorted_keys),
        cmocka_unit_test(command_version_prints_one_line),
        cmocka_unit_test(command_C3_unknown_prints_help_and_exits_1),
        cmocka_unit_test(command_help_exits_0),
        cmocka_unit_test(command_bad_filter_ends_even_version),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
