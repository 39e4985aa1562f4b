"""A stand-in for the driver's CUDA library, which computes what the one kernel of ours computes.

It knows the functions that are called, as they are called, and nothing of a GPU.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

# What goes wrong with it: a mode below.
MODE = "GPUSPAWNER_TEST_CUDA"
SOURCE = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef REAL_HEADER
#include <cuda.h>
#else
typedef int CUresult;
typedef int CUdevice;
typedef int CUdevice_attribute;
typedef struct { char bytes[16]; } CUuuid;
typedef struct context *CUcontext;
typedef struct module *CUmodule;
typedef struct function *CUfunction;
typedef struct stream *CUstream;
typedef unsigned long long CUdeviceptr;
#endif

static char text[100];

static int mode(const char *name)
{
    const char *said = getenv("GPUSPAWNER_TEST_CUDA");
    return said && !strcmp(said, name);
}

CUresult cuGetErrorName(CUresult code, const char **name)
{
    *name = code == 218 ? "CUDA_ERROR_INVALID_PTX" : "CUDA_ERROR_NO_DEVICE";
    return code == 218 || code == 100 ? 0 : 1;
}

CUresult cuInit(unsigned int flags)
{
    if (mode("hang"))
        pause();
    if (mode("crash"))
        _exit(9);
    return mode("none") ? 100 : mode("odd") ? 4711 : flags;
}

CUresult cuDriverGetVersion(int *version) { *version = 12080; return 0; }
CUresult cuDeviceGetCount(int *count) { *count = 1; return 0; }
CUresult cuDeviceGet(CUdevice *device, int index) { *device = index; return 0; }

CUresult cuDeviceGetName(char *name, int size, CUdevice device)
{
    snprintf(name, size, "Stand-in %d", device);
    return 0;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device)
{
    (void)device;
    *value = attribute == 75 ? (mode("old") ? 2 : 8) : attribute == 76 ? 6 : -1;
    return 0;
}

/* Of the GPU that the variable shows, or of another. */
CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device)
{
    const char *shown = getenv("CUDA_VISIBLE_DEVICES");
    (void)device;
    memset(uuid, mode("other") ? 1 : 0, sizeof *uuid);
    shown = !shown || mode("other") ? "" : strchr(shown, '-') + 1;
    for (int i = 0; i < 16 && *shown; shown += 2) {
        unsigned int byte;
        if (*shown == '-')
            shown++;
        if (sscanf(shown, "%2x", &byte) == 1)
            ((unsigned char *)uuid)[i++] = byte;
    }
    return 0;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
    *context = (CUcontext)(uintptr_t)(device + 1);
    return 0;
}

CUresult cuCtxSetCurrent(CUcontext context) { return (uintptr_t)context != 1; }

CUresult cuModuleLoadData(CUmodule *module, const void *image)
{
    const char *ptx = image;
    *module = (CUmodule)text;
    snprintf(text, sizeof text, "%s", strstr(ptx, "entry "));
    return mode("ptx") || !strstr(ptx, ".target sm_75") ? 218 : 0;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
    *function = (CUfunction)text;
    return (char *)module != text || strncmp(text + 6, name, strlen(name));
}

CUresult cuMemAlloc_v2(CUdeviceptr *memory, size_t size)
{
    *memory = (uintptr_t)malloc(size);
    return !*memory;
}

CUresult cuMemFree_v2(CUdeviceptr memory) { free((void *)(uintptr_t)memory); return 0; }

CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t size)
{
    memcpy((void *)(uintptr_t)to, from, size);
    return 0;
}

CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t size)
{
    memcpy(to, (void *)(uintptr_t)from, size);
    return 0;
}

CUresult cuLaunchKernel(CUfunction function, unsigned int blocks, unsigned int y, unsigned int z,
                        unsigned int threads, unsigned int u, unsigned int v,
                        unsigned int shared, CUstream stream, void **given, void **extra)
{
    uint32_t *values = *(uint32_t **)given[0], count = *(uint32_t *)given[1];
    if ((char *)function != text || y * z * u * v != 1 || shared || stream || extra
        || count > blocks * threads)
        return 1;
    for (uint32_t i = 0; i < blocks * threads && i < count; i++)
        values[i] = values[i] * 3 + i + (mode("wrong") && i == count - 1);
    return 0;
}

CUresult cuCtxSynchronize(void) { return 0; }
"""


def compile_library(directory: Path, *flags: str) -> Path:
    """Compile it as `libcuda.so.1` in a folder, which is for LD_LIBRARY_PATH."""
    (directory / "cuda.c").write_text(SOURCE)
    made = directory / "libcuda.so.1"
    words = ["cc", "-shared", "-fPIC", "-Wall", "-Werror", *flags, "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*words, str(directory / "cuda.c"), "-o", str(made)], check=True)
    return directory
