/*
 * What each function of the simulated NVML begins and ends with: read the state, fail as it says, and
 * answer. Shared by the library's own sources, and no symbol of the library.
 */
#ifndef GPUSPAWNER_NVML_CALL_H
#define GPUSPAWNER_NVML_CALL_H

#include "state.h"

#ifdef GPUSPAWNER_NVML_H
#include GPUSPAWNER_NVML_H /* the tests compile our definitions against NVIDIA's own prototypes */
#else
#include "nvml_abi.h"
#endif

#define HIDDEN __attribute__((visibility("hidden")))
#define MIB (1024ULL * 1024ULL)

/* Identity is answered from what the driver remembers, also by a GPU that needs a reset. */
enum question { ABOUT_IDENTITY, ABOUT_CONDITION };

HIDDEN void close_state(struct state **state);
HIDDEN nvmlReturn_t enter(const char *function, struct state **state);
HIDDEN nvmlReturn_t enter_gpu(const char *function, struct state **state, struct gpu **gpu,
                              nvmlDevice_t device, enum question question);

/* The value, or "not supported" where it is ABSENT or NULL. */
HIDDEN nvmlReturn_t answer(int value, unsigned int *result);
HIDDEN nvmlReturn_t answer_text(const char *text, char *result, unsigned int length);
HIDDEN nvmlReturn_t answer_switch(int on, nvmlEnableState_t *result);
HIDDEN nvmlReturn_t answer_pci(const char *bus_id, nvmlPciInfo_t *pci);

#define RETURN_IF_FAILED(expression) \
    do { \
        nvmlReturn_t code_ = (expression); \
        if (code_ != NVML_SUCCESS) \
            return code_; \
    } while (0)

#define ENTER() \
    __attribute__((cleanup(close_state))) struct state *state = NULL; \
    RETURN_IF_FAILED(enter(__func__, &state))

#define ENTER_GPU(question) \
    __attribute__((cleanup(close_state))) struct state *state = NULL; \
    struct gpu *gpu = NULL; \
    RETURN_IF_FAILED(enter_gpu(__func__, &state, &gpu, device, question))

#define NEED(pointer) RETURN_IF_FAILED((pointer) ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT)

#endif
