/* Handing over listeners of a SO_REUSEPORT group.
 *
 * When a listener closes, the kernel resets what its queue holds and forgets the handshakes that are under way. It moves them to another
 * listener of the group instead when net.ipv4.tcp_migrate_req is set, which needs a writable /proc/sys of the pod, or when the group
 * has a program of the attach type "select or migrate" (Linux 5.14). Ours selects nothing: the kernel spreads connections as ever. The
 * program belongs to the group, so whichever daemon attached it serves both.
 *
 * Invariant: the program is loaded once, at the first listener; its descriptor is kept for the life of the process. */
#include "zt/net/handover.h"
#include "zt/base/err.h"
#include "zt/base/log.h"
#include <errno.h>
#include <linux/bpf.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static int program_fd = -1;
static int program_errno;
static pthread_once_t program_once = PTHREAD_ONCE_INIT;

static void load_program(void)
{
    static const struct bpf_insn instructions[] = {
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = SK_PASS},
        {.code = BPF_JMP | BPF_EXIT},
    };
    union bpf_attr attr = {
        .prog_type = BPF_PROG_TYPE_SK_REUSEPORT,
        .expected_attach_type = BPF_SK_REUSEPORT_SELECT_OR_MIGRATE,
        .insns = (uintptr_t)instructions,
        .insn_cnt = sizeof instructions / sizeof *instructions,
        .license = (uintptr_t) "Apache-2.0",
    };
    program_fd = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof attr);
    program_errno = errno;
}

static void complain(int errnum)
{
    static _Thread_local struct zt_log_gate gate;
    uint32_t suppressed;
    char text[128];
    if (!zt_log_gate_pass(&gate, 1, &suppressed))
        return;
    zt_log_warn("proxy",
                "when another daemon takes over, connections that are being made may be reset: no program for the listeners: %s; allow "
                "bpf(2), or set net.ipv4.tcp_migrate_req=1 in the pods",
                zt_errno_text(errnum, text, sizeof text));
}

void zt_handover_enable(int listener)
{
    pthread_once(&program_once, load_program);
    if (program_fd < 0)
        complain(program_errno);
    else if (setsockopt(listener, SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, &program_fd, sizeof program_fd) != 0)
        complain(errno);
}
