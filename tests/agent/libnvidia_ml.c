/* The driver's functions that edgecnn asks: a GPU at 2100 MHz, 61 degrees, 120 W, throttled where the test says so. */
#include <stdlib.h>

int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned number, void **gpu) { *gpu = (void *)1; return number; }
int nvmlDeviceGetClockInfo(void *gpu, int kind, unsigned *mhz) { *mhz = kind == 0 ? 2100 : 8001; return gpu ? 0 : 2; }
int nvmlDeviceGetTemperature(void *gpu, int sensor, unsigned *celsius) { *celsius = 61; return sensor; }
int nvmlDeviceGetPowerUsage(void *gpu, unsigned *mw) { *mw = 120000; return 0; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *gpu, unsigned long long *reasons) {
    const char *said = getenv("FAKE_NVML_REASONS");
    *reasons = said ? strtoull(said, 0, 16) : 0;
    return 0;
}
