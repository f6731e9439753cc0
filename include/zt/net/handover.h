/* Listeners that several daemons share during an upgrade (spec/inpod §2.8). */
#ifndef ZT_NET_HANDOVER_H
#define ZT_NET_HANDOVER_H

/* When this listener (listening, SO_REUSEPORT) closes, connections in its queue and handshakes under way go to another listener of
 * the same address, if there is one, instead of being reset. Best effort: a warning says when the system does not let us. Thread: any. */
void zt_handover_enable(int listener);

#endif
