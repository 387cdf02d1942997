/* Running a pass over all pairs of row blocks. Internal to cpu/. */
#ifndef LN_CPU_SCHEDULE_H
#define LN_CPU_SCHEDULE_H
#include "tile.h"

/* square: q and k are one set of rows. tiles: kept ones, read or filled, or NULL. Fails without
 * memory, or when interrupted. */
ln_status REAL(schedule_run)(const tile_pass *pass, bool square, ln_tiles *tiles);

#endif
