/* The two finalisers of a host state that owns tensors: see ln.h. Holds no state. Neither can fail,
 * and they may run in either order when the host closes. */
#include "ln.h"

void ln_handles_mark(ln_handles *all) {
    all->stale = true;
}

void ln_handles_release(ln_handles *all) {
    for (int64_t i = 0; i < all->capacity; i++) {
        ln_tensor_release(all->handle[i]);
        all->handle[i] = NULL;
    }
}
