/* The home page's text before and after the rows of its table of endpoints. Private to ops. */
#ifndef ZT_OPS_HOME_PAGE_H
#define ZT_OPS_HOME_PAGE_H

extern const char zt_home_page_head[], zt_home_page_tail[];

#endif
