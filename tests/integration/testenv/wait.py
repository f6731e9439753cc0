"""Waiting for a condition, never sleeping for luck."""
import time


def eventually(check, what="the condition", timeout=10.0, every=0.02):
    """Calls check until it gives something true, and returns that; the last exception or value is in the failure."""
    end = time.monotonic() + timeout
    last = None
    while True:
        try:
            last = check()
            if last:
                return last
        except (AssertionError, OSError, LookupError) as e:
            last = e
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not hold within {timeout} s; last: {last!r}")
        time.sleep(every)
