/* Clocks. The test offset moves all of them together. */
#include "zt/base/clock.h"

#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

static _Atomic int64_t offset_us;

static int64_t read_us(clockid_t id)
{
    struct timespec now;
    clock_gettime(id, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000 +
           atomic_load_explicit(&offset_us, memory_order_relaxed);
}

uint64_t zt_clock_mono_us(void)
{
    return (uint64_t)read_us(CLOCK_MONOTONIC);
}

uint64_t zt_clock_mono_ms(void)
{
    return zt_clock_mono_us() / 1000;
}

int64_t zt_clock_wall_us(void)
{
    return read_us(CLOCK_REALTIME);
}

static void format_date(int64_t wall_s, char buf[static ZT_TIME_TEXT_MAX])
{
    time_t t = (time_t)wall_s;
    struct tm tm;
    if (!gmtime_r(&t, &tm) || strftime(buf, ZT_TIME_TEXT_MAX, "%Y-%m-%dT%H:%M:%S", &tm) == 0)
        snprintf(buf, ZT_TIME_TEXT_MAX, "1970-01-01T00:00:00");
}

const char *zt_clock_format_us(int64_t wall_us, char buf[static ZT_TIME_TEXT_MAX])
{
    int64_t s = wall_us / 1000000, us = wall_us % 1000000;
    if (us < 0) {
        us += 1000000;
        s--;
    }
    char date[ZT_TIME_TEXT_MAX];
    format_date(s, date);
    snprintf(buf, ZT_TIME_TEXT_MAX, "%.23s.%06dZ", date, (int)us);
    return buf;
}

const char *zt_clock_format_s(int64_t wall_s, char buf[static ZT_TIME_TEXT_MAX])
{
    char date[ZT_TIME_TEXT_MAX];
    format_date(wall_s, date);
    snprintf(buf, ZT_TIME_TEXT_MAX, "%.30sZ", date);
    return buf;
}

void zt_clock_test_advance_ms(int64_t ms)
{
    atomic_fetch_add(&offset_us, ms * 1000);
}
