/* The apply thread: batches of state changes go to the store off the control loop, in order; what follows from them (certificates,
 * connections judged again) is reported back on control. Private to app. Thread: control. */
#ifndef ZT_APP_STATE_FEED_H
#define ZT_APP_STATE_FEED_H

#include "zt/loop/loop.h"
#include "zt/state/store.h"

struct zt_state_feed;

/* changes is borrowed during the call. */
typedef void (*zt_state_applied_fn)(void *arg, const struct zt_store_changes *changes);

/* Borrows control and store until free. Returns owned, or NULL with err. */
struct zt_state_feed *zt_state_feed_new(struct zt_loop *control, struct zt_store *store, zt_state_applied_fn applied,
                                        void *arg, struct zt_error *err);
/* Takes batch. applied runs later, from the loop. */
void zt_state_feed_put(struct zt_state_feed *f, struct zt_batch *batch);
/* Applies here and now; for the start, when nobody is served yet. Takes batch; applied runs before it returns. */
void zt_state_feed_put_now(struct zt_state_feed *f, struct zt_batch *batch);
/* The apply thread's loop, for other work on the whole state that takes long. Borrowed (until free); messages left are run by free. */
struct zt_loop *zt_state_feed_loop(struct zt_state_feed *f);
/* Waits for what is being applied; applied does not run any more. NULL is legal. */
void zt_state_feed_free(struct zt_state_feed *f);

#endif
