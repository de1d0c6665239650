/* A libcuda.so.1 without a device: every call succeeds, and launches are recorded. Triton's real
   launcher runs over it, which shows what a launch costs the host and what it asks of the driver. */

#include <string.h>

enum { MAX_KERNELS = 64, MAX_LAUNCHES = 256 };
enum { SHARED_MEMORY = 97, STATIC_SHARED_MEMORY = 8, COUNT_OF_MULTIPROCESSORS = 16 };
enum { WARP_SIZE = 10, MAJOR = 75, MINOR = 76 };

enum { CLUSTER_DIMENSION = 4 };

/* CUlaunchAttribute, whose value is a union */
typedef struct {
    int id, padding;
    unsigned value[16];
} Attribute;

/* the beginning of CUlaunchConfig */
typedef struct {
    unsigned grid[3], block[3], shared_bytes;
    void *stream;
    const Attribute *attributes;
    unsigned n_attributes;
} LaunchConfig;

/* thread blocks in a cluster: 0 if the launch says nothing */
typedef struct {
    const char *kernel;
    unsigned grid[3], n_threads, n_attributes, cluster_blocks;
} Launch;

static char kernels[MAX_KERNELS][256];
static int n_kernels, n_launches;
static Launch launches[MAX_LAUNCHES];

int stub_count(void) { return n_launches; }
const Launch *stub_launch(int i) { return &launches[i % MAX_LAUNCHES]; }
void stub_clear(void) { n_launches = 0; }

int cuLaunchKernelEx(const LaunchConfig *config, void *function, void **arguments, void **extra)
{
    Launch *launch = &launches[n_launches++ % MAX_LAUNCHES];
    launch->kernel = function;
    memcpy(launch->grid, config->grid, sizeof config->grid);
    launch->n_threads = config->block[0];
    launch->n_attributes = config->n_attributes;
    launch->cluster_blocks = 0;
    for (unsigned i = 0; i < config->n_attributes; i++)
        if (config->attributes[i].id == CLUSTER_DIMENSION)
            launch->cluster_blocks = config->attributes[i].value[0];
    return 0;
}

/* a function is its name */
int cuModuleGetFunction(void **function, void *module, const char *name)
{
    char *kernel = kernels[n_kernels++ % MAX_KERNELS];
    strncpy(kernel, name, sizeof kernels[0] - 1);
    *function = kernel;
    return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    switch (attribute) {
    case MAJOR: *value = 9; break;
    case MINOR: *value = 0; break;
    case WARP_SIZE: *value = 32; break;
    case SHARED_MEMORY: *value = 227 * 1024; break;
    case STATIC_SHARED_MEMORY: *value = 48 * 1024; break;
    case COUNT_OF_MULTIPROCESSORS: *value = 132; break;
    default: *value = 1024;
    }
    return 0;
}

int cuFuncGetAttribute(int *value, int attribute, void *function)
{
    const int max_threads_per_block = 0;
    *value = attribute == max_threads_per_block ? 1024 : 0;
    return 0;
}

static int handle(void **result)
{
    *result = kernels;
    return 0;
}

int cuInit(unsigned flags) { return 0; }
int cuDeviceGet(int *device, int ordinal) { return *device = 0; }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cuDriverGetVersion(int *version) { return *version = 13000, 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { return handle(context); }
int cuCtxGetCurrent(void **context) { return handle(context); }
int cuCtxGetDevice(int *device) { return *device = 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuCtxSetLimit(int limit, size_t value) { return 0; }
int cuCtxGetLimit(size_t *value, int limit) { return *value = 0, 0; }
int cuModuleLoadData(void **module, const void *image) { return handle(module); }
int cuModuleUnload(void *module) { return 0; }
int cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
int cuFuncSetCacheConfig(void *function, int config) { return 0; }
int cuGetErrorString(int error, const char **text) { return *text = "stub", 0; }
int cuOccupancyMaxActiveClusters(int *count, void *function, const void *config)
{
    return *count = 16, 0;
}
int cuStreamIsCapturing(void *stream, int *status) { return *status = 0; }
int cuTensorMapEncodeTiled(void *map) { return 0; }
int cuTensorMapEncodeIm2col(void *map) { return 0; }

/* a pointer of the host stands for one of the device */
int cuPointerGetAttribute(void *result, int attribute, unsigned long long pointer)
{
    memcpy(result, &pointer, sizeof pointer);
    return 0;
}
