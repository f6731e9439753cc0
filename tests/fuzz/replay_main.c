/* Stands in for libFuzzer in ordinary builds: runs every file of the directories (or files) named on the command line through
 * the driver once, so that a corpus is a regression test. Exit status 1 when no input was found: a corpus that moved away must
 * not look like a pass. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define INPUT_BYTES_MAX (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned n_run;

static void run_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f) {
        perror(path);
        exit(1);
    }
    uint8_t *whole = malloc(INPUT_BYTES_MAX);
    if (!whole)
        exit(1);
    size_t n = fread(whole, 1, INPUT_BYTES_MAX, f);
    fclose(f);
    /* An exact allocation, so that the address sanitizer sees a read one byte past the end. */
    uint8_t *exact = malloc(n ? n : 1);
    if (!exact)
        exit(1);
    memcpy(exact, whole, n);
    free(whole);
    LLVMFuzzerTestOneInput(exact, n);
    free(exact);
    n_run++;
}

static void run_path(const char *path)
{
    struct stat st;
    if (stat(path, &st)) {
        perror(path);
        exit(1);
    }
    if (!S_ISDIR(st.st_mode)) {
        run_file(path);
        return;
    }
    struct dirent **entries;
    int n = scandir(path, &entries, NULL, alphasort);
    if (n < 0) {
        perror(path);
        exit(1);
    }
    for (int i = 0; i < n; i++) {
        char child[4096];
        int len = snprintf(child, sizeof(child), "%s/%s", path, entries[i]->d_name);
        if (entries[i]->d_name[0] != '.' && len > 0 && (size_t)len < sizeof(child))
            run_path(child);
        free(entries[i]);
    }
    free(entries);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        run_path(argv[i]);
    printf("%u inputs\n", n_run);
    return n_run ? 0 : 1;
}
