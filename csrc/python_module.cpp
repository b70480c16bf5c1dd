// What is no op: the build's description, progress and interrupts, and the choice of instruction set. Limited API, so
// that one binary serves every CPython from 3.10.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace {

// The op that this thread runs on behalf of Python: a callback for its progress, and the exception that stopped it.
struct Call {
  PyObject* progress = nullptr;  // borrowed from the frame that runs the op
  bool active = false;
  PyObject *type = nullptr, *value = nullptr, *traceback = nullptr;
};
thread_local Call call;

std::atomic<bool> ending{false};  // the interpreter: set before `polling` is read there,
std::atomic<int> polling{0};      // and read after this thread has been counted here

bool poll(const char* stage, int64_t done, int64_t total) {
  if (!call.active) return false;
  struct Counted {
    Counted() { ++polling; }
    ~Counted() { --polling; }
  } counted;
  if (ending) return false;
  const PyGILState_STATE state = PyGILState_Ensure();
  bool failed = PyErr_CheckSignals() != 0;
  if (!failed && call.progress) {
    PyObject* result = PyObject_CallFunction(call.progress, "sLL", stage, static_cast<long long>(done),
                                             static_cast<long long>(total));
    failed = result == nullptr;
    Py_XDECREF(result);
  }
  if (failed) PyErr_Fetch(&call.type, &call.value, &call.traceback);
  PyGILState_Release(state);
  return failed;
}

PyObject* run(PyObject*, PyObject* args) {
  PyObject *progress, *function, *arguments;
  if (!PyArg_ParseTuple(args, "OOO", &progress, &function, &arguments)) return nullptr;
  const Call outer = call;  // a progress callback may itself run an op
  call = Call{progress == Py_None ? nullptr : progress, true, nullptr, nullptr, nullptr};
  PyObject* result = PyObject_CallObject(function, arguments);
  const Call mine = call;
  call = outer;
  if (mine.type) {
    Py_XDECREF(result);
    PyErr_Clear();
    PyErr_Restore(mine.type, mine.value, mine.traceback);
    return nullptr;
  }
  return result;
}

PyObject* build_info(PyObject*, PyObject*) {
  PyObject* compiled = PyList_New(0);
  PyObject* available = PyList_New(0);
  for (const char* const* name = dmic::simd_levels(); *name; ++name) {
    PyObject* text = PyUnicode_FromString(*name);
    PyList_Append(compiled, text);
    if (dmic::simd_level_available(*name)) PyList_Append(available, text);
    Py_DECREF(text);
  }
#ifdef DMIC_CUDA_ARCHITECTURES
  const char* architectures = DMIC_CUDA_ARCHITECTURES;
  const int cuda_version = DMIC_CUDA_VERSION;
#else
  const char* architectures = "";
  const int cuda_version = 0;
#endif
  return Py_BuildValue("{s:s,s:s,s:N,s:N,s:s,s:i,s:s}", "compiler", DMIC_COMPILER, "torch_target", "2.11", "simd_compiled",
                       compiled, "simd_available", available, "simd_used", dmic::simd().name, "cuda_version", cuda_version,
                       "cuda_architectures", architectures);
}

PyObject* set_simd_level(PyObject*, PyObject* args) {
  const char* name;
  if (!PyArg_ParseTuple(args, "z", &name)) return nullptr;
  if (!dmic::set_simd_level(name)) {
    PyErr_Format(PyExc_ValueError, "set_simd_level: name must be a level that this processor has, got '%s'", name);
    return nullptr;
  }
  Py_RETURN_NONE;
}

// At exit: a thread that still runs an op must not ask for the GIL of an interpreter that is going away. Those that have
// asked get it now; one whose callback takes longer than a second is left to its fate.
PyObject* stop_polling(PyObject*, PyObject*) {
  ending = true;
  dmic::poll_function.store(nullptr);
  Py_BEGIN_ALLOW_THREADS
  for (int turn = 0; polling && turn < 1000; ++turn) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  Py_END_ALLOW_THREADS
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"run", run, METH_VARARGS, "run(progress, function, arguments): call with progress reports and interrupts"},
    {"build_info", build_info, METH_NOARGS, "what this library was built with, and the instruction set in use"},
    {"set_simd_level", set_simd_level, METH_VARARGS, "force an instruction set (tests); None chooses the best"},
    {"stop_polling", stop_polling, METH_NOARGS, "no more progress and interrupts; for the end of the process"},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() {
  dmic::poll_function.store(poll);
  return PyModule_Create(&module);
}
