/* Time. Monotonic milliseconds for durations, wall time for logs and certificates. A test may stand in for both.
 * Thread: any. */
#ifndef ZT_BASE_CLOCK_H
#define ZT_BASE_CLOCK_H

#include <stdint.h>

uint64_t zt_clock_mono_us(void);
uint64_t zt_clock_mono_ms(void);
int64_t zt_clock_wall_us(void); /* since the epoch, UTC */

/* "2026-08-20T10:00:00.123456Z". Returns borrowed: buf. */
#define ZT_TIME_TEXT_MAX 32
const char *zt_clock_format_us(int64_t wall_us, char buf[static ZT_TIME_TEXT_MAX]);
/* "2026-08-20T10:00:00Z" */
const char *zt_clock_format_s(int64_t wall_s, char buf[static ZT_TIME_TEXT_MAX]);

/* Tests only: offset added to all clocks above, so that time can be moved by hand. */
void zt_clock_test_advance_ms(int64_t ms);

#endif
