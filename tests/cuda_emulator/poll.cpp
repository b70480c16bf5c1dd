// Progress of the emulated ops: what csrc/python_module.cpp installs in the package's own library.
#include "../../csrc/cpu/parallel.h"

extern "C" __attribute__((visibility("default"))) void dmic_emulator_set_poll(dmic::PollFunction poll) {
  dmic::poll_function.store(poll);
}
