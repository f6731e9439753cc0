/* State records as JSON values, in the form of spec/interfaces §4.4 (keys sorted, defaults left out). Private to app. Thread: any. */
#ifndef ZT_APP_DUMP_RECORDS_H
#define ZT_APP_DUMP_RECORDS_H

#include "zt/base/json.h"
#include "zt/state/store.h"

/* local_form: `services` as in a local file, a map of port maps, instead of a list of names. */
void zt_dump_workload(struct zt_json *j, const struct zt_workload *w, bool local_form);
/* Endpoints come from the store. */
void zt_dump_service(struct zt_json *j, struct zt_store *store, const struct zt_service *s);
void zt_dump_policy(struct zt_json *j, const struct zt_policy *p);
/* The object of endpoints whose service has not arrived. */
void zt_dump_staged(struct zt_json *j, struct zt_store *store);

#endif
