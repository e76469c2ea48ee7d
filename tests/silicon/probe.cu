// What a launch and a barrier of the grid take, without anything else.
#include <cooperative_groups.h>

extern "C" __global__ void probe_empty() {}

extern "C" __global__ void probe_barriers(int count) {
    for (int i = 0; i < count; i++) cooperative_groups::this_grid().sync();
}
