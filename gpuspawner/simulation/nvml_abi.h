/*
 * The part of NVML's binary interface that nvml.c speaks: types, layouts and constants.
 *
 * Written from NVIDIA's documentation, not copied from its header; the tests compare every layout
 * and every prototype with the real nvml.h.
 * ref: https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceStructs.html
 */
#ifndef GPUSPAWNER_NVML_ABI_H
#define GPUSPAWNER_NVML_ABI_H

#ifndef ABI
#define ABI(name) name /* the tests give our names a prefix, to hold them beside the real ones */
#endif

typedef struct ABI(nvmlDevice_st) *ABI(nvmlDevice_t);
typedef enum {
    ABI(NVML_SUCCESS) = 0,
    ABI(NVML_ERROR_UNINITIALIZED) = 1,
    ABI(NVML_ERROR_INVALID_ARGUMENT) = 2,
    ABI(NVML_ERROR_NOT_SUPPORTED) = 3,
    ABI(NVML_ERROR_NO_PERMISSION) = 4,
    ABI(NVML_ERROR_NOT_FOUND) = 6,
    ABI(NVML_ERROR_INSUFFICIENT_SIZE) = 7,
    ABI(NVML_ERROR_DRIVER_NOT_LOADED) = 9,
    ABI(NVML_ERROR_TIMEOUT) = 10,
    ABI(NVML_ERROR_FUNCTION_NOT_FOUND) = 13,
    ABI(NVML_ERROR_GPU_IS_LOST) = 15,
    ABI(NVML_ERROR_RESET_REQUIRED) = 16,
    ABI(NVML_ERROR_LIB_RM_VERSION_MISMATCH) = 18,
    ABI(NVML_ERROR_ARGUMENT_VERSION_MISMATCH) = 25,
    ABI(NVML_ERROR_UNKNOWN) = 999
} ABI(nvmlReturn_t);

/* Enumerations travel as `unsigned int`; we look at their numbers only. */
typedef enum { ABI(NVML_FEATURE_DISABLED) = 0, ABI(NVML_FEATURE_ENABLED) = 1 } ABI(nvmlEnableState_t);
typedef enum { ABI(NVML_BRAND_UNKNOWN) = 0, ABI(NVML_BRAND_TESLA) = 2, ABI(NVML_BRAND_GEFORCE) = 5,
               ABI(NVML_BRAND_NVIDIA_RTX) = 13, ABI(NVML_BRAND_NVIDIA) = 14 } ABI(nvmlBrandType_t);
typedef enum { ABI(NVML_COMPUTEMODE_DEFAULT) = 0, ABI(NVML_COMPUTEMODE_PROHIBITED) = 2,
               ABI(NVML_COMPUTEMODE_EXCLUSIVE_PROCESS) = 3 } ABI(nvmlComputeMode_t);
typedef enum { ABI(NVML_TEMPERATURE_GPU) = 0 } ABI(nvmlTemperatureSensors_t);
typedef enum { ABI(NVML_TEMPERATURE_THRESHOLD_SHUTDOWN) = 0,
               ABI(NVML_TEMPERATURE_THRESHOLD_SLOWDOWN) = 1 } ABI(nvmlTemperatureThresholds_t);
typedef enum { ABI(NVML_CLOCK_GRAPHICS) = 0, ABI(NVML_CLOCK_SM) = 1, ABI(NVML_CLOCK_MEM) = 2,
               ABI(NVML_CLOCK_VIDEO) = 3 } ABI(nvmlClockType_t);
typedef enum { ABI(NVML_PSTATE_0) = 0, ABI(NVML_PSTATE_8) = 8 } ABI(nvmlPstates_t);
typedef enum { ABI(NVML_MEMORY_ERROR_TYPE_CORRECTED) = 0,
               ABI(NVML_MEMORY_ERROR_TYPE_UNCORRECTED) = 1 } ABI(nvmlMemoryErrorType_t);
typedef enum { ABI(NVML_VOLATILE_ECC) = 0 } ABI(nvmlEccCounterType_t);
typedef enum { ABI(NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS) = 0 } ABI(nvmlPageRetirementCause_t);
typedef enum { ABI(NVML_PCIE_UTIL_TX_BYTES) = 0 } ABI(nvmlPcieUtilCounter_t);
typedef enum { ABI(NVML_PERF_POLICY_POWER) = 0 } ABI(nvmlPerfPolicyType_t);
typedef enum { ABI(NVML_DRIVER_WDDM) = 0 } ABI(nvmlDriverModel_t);
typedef enum { ABI(NVML_VALUE_TYPE_UNSIGNED_INT) = 1 } ABI(nvmlValueType_t);

typedef struct {
    char busIdLegacy[16];
    unsigned int domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} ABI(nvmlPciInfo_t);

typedef struct {
    unsigned long long total, free, used;
} ABI(nvmlMemory_t);

typedef struct {
    unsigned int version;
    unsigned long long total, reserved, free, used;
} ABI(nvmlMemory_v2_t);

typedef struct {
    unsigned long long bar1Total, bar1Free, bar1Used;
} ABI(nvmlBAR1Memory_t);

typedef struct {
    unsigned int gpu, memory;
} ABI(nvmlUtilization_t);

typedef struct {
    unsigned int pid;
    unsigned long long usedGpuMemory;
} ABI(nvmlProcessInfo_v1_t);

typedef struct {
    unsigned int pid;
    unsigned long long usedGpuMemory;
    unsigned int gpuInstanceId, computeInstanceId;
} ABI(nvmlProcessInfo_v2_t);
typedef ABI(nvmlProcessInfo_v2_t) ABI(nvmlProcessInfo_t); /* version 3 kept version 2's layout */

typedef struct {
    unsigned int multiprocessorCount, sharedCopyEngineCount, sharedDecoderCount, sharedEncoderCount;
    unsigned int sharedJpegCount, sharedOfaCount, gpuInstanceSliceCount, computeInstanceSliceCount;
    unsigned long long memorySizeMB;
} ABI(nvmlDeviceAttributes_t);

typedef struct {
    unsigned int pid;
    unsigned long long timeStamp;
    unsigned int smUtil, memUtil, encUtil, decUtil;
} ABI(nvmlProcessUtilizationSample_t);

typedef struct {
    unsigned long long referenceTime, violationTime;
} ABI(nvmlViolationTime_t);

typedef enum {
    ABI(NVML_TOPOLOGY_INTERNAL) = 0, ABI(NVML_TOPOLOGY_SINGLE) = 10, ABI(NVML_TOPOLOGY_MULTIPLE) = 20,
    ABI(NVML_TOPOLOGY_HOSTBRIDGE) = 30, ABI(NVML_TOPOLOGY_NODE) = 40, ABI(NVML_TOPOLOGY_SYSTEM) = 50
} ABI(nvmlGpuTopologyLevel_t);

typedef enum {
    ABI(NVML_NVLINK_DEVICE_TYPE_GPU) = 0, ABI(NVML_NVLINK_DEVICE_TYPE_IBMNPU) = 1,
    ABI(NVML_NVLINK_DEVICE_TYPE_SWITCH) = 2, ABI(NVML_NVLINK_DEVICE_TYPE_UNKNOWN) = 255
} ABI(nvmlIntNvLinkDeviceType_t);

typedef struct ABI(nvmlEventSet_st) *ABI(nvmlEventSet_t);

typedef struct {
    ABI(nvmlDevice_t) device;
    unsigned long long eventType, eventData;
    unsigned int gpuInstanceId, computeInstanceId;
} ABI(nvmlEventData_t);

typedef struct {
    unsigned int version;
    unsigned char clusterUuid[16];
    ABI(nvmlReturn_t) status;
    unsigned int cliqueId;
    unsigned char state;
    unsigned int healthMask;
} ABI(nvmlGpuFabricInfo_v2_t);
typedef ABI(nvmlGpuFabricInfo_v2_t) ABI(nvmlGpuFabricInfoV_t);

typedef struct {
    unsigned char clusterUuid[16];
    ABI(nvmlReturn_t) status;
    unsigned int cliqueId;
    unsigned char state;
} ABI(nvmlGpuFabricInfo_t);

typedef union {
    double dVal;
    int siVal;
    unsigned int uiVal;
    unsigned long ulVal;
    unsigned long long ullVal;
    signed long long sllVal;
    unsigned short usVal;
} ABI(nvmlValue_t);

typedef struct {
    unsigned int fieldId, scopeId;
    long long timestamp, latencyUsec;
    ABI(nvmlValueType_t) valueType;
    ABI(nvmlReturn_t) nvmlReturn;
    ABI(nvmlValue_t) value;
} ABI(nvmlFieldValue_t);

#endif
