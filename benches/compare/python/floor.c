/* The floor for Python: the least that hands a message of `rust/src/candidates/minimal.rs` to an interpreter.
 *
 * `Ring(path, bytes, slots)` maps the ring. `recv()` releases the message before and waits, busy, for the next one; then the
 * ring object itself is a buffer of its payload, for np.frombuffer. No safety at all: an array of an older message shows a
 * newer one, a length is never checked, the interpreter is not left while waiting.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ENTRY = 128, ENTRIES = 64, INLINE = 64, SLOTS_AT = ENTRY + ENTRIES * ENTRY };

typedef struct {
    PyObject_HEAD
    char *map;
    size_t length, bytes, slots, stride;
    uint64_t number; /* messages that were received */
} Ring;

static int ring_init(Ring *self, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    const char *path;
    Py_ssize_t bytes, slots;
    if (!PyArg_ParseTuple(args, "snn", &path, &bytes, &slots)) return -1;
    self->bytes = (size_t)bytes;
    self->slots = (size_t)(slots < ENTRIES ? slots : ENTRIES);
    self->stride = (self->bytes + 63) / 64 * 64 + 64;
    self->length = SLOTS_AT + (self->bytes > INLINE ? self->slots * self->stride : 0);
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) return PyErr_SetFromErrnoWithFilename(PyExc_OSError, path), -1;
    self->map = mmap(NULL, self->length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file, 0);
    close(file);
    if (self->map == MAP_FAILED) return self->map = NULL, PyErr_SetFromErrno(PyExc_OSError), -1;
    return 0;
}

static void ring_dealloc(Ring *self) {
    if (self->map) munmap(self->map, self->length);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static char *ring_entry(Ring *self, uint64_t number) { return self->map + ENTRY + number % ENTRIES * ENTRY; }

static PyObject *ring_recv(Ring *self, PyObject *Py_UNUSED(ignored)) {
    atomic_store_explicit((_Atomic uint64_t *)self->map, self->number, memory_order_release);
    _Atomic uint64_t *commit = (_Atomic uint64_t *)ring_entry(self, self->number);
    uint64_t want = self->number + 1;
    while (atomic_load_explicit(commit, memory_order_acquire) != want) __builtin_ia32_pause();
    self->number = want;
    Py_RETURN_NONE;
}

static int ring_buffer(Ring *self, Py_buffer *view, int flags) {
    uint64_t number = self->number - 1;
    char *at = self->bytes <= INLINE ? ring_entry(self, number) + 8 : self->map + SLOTS_AT + number % self->slots * self->stride;
    return PyBuffer_FillInfo(view, (PyObject *)self, at, (Py_ssize_t)self->bytes, 0, flags);
}

static PyMethodDef methods[] = {{"recv", (PyCFunction)ring_recv, METH_NOARGS, "Wait for the next message."}, {NULL}};
static PyBufferProcs buffer = {.bf_getbuffer = (getbufferproc)ring_buffer};
static PyTypeObject type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "floor.Ring",
    .tp_basicsize = sizeof(Ring),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)ring_init,
    .tp_dealloc = (destructor)ring_dealloc,
    .tp_methods = methods,
    .tp_as_buffer = &buffer,
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "floor", .m_size = -1};

PyMODINIT_FUNC PyInit_floor(void) {
    if (PyType_Ready(&type) < 0) return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made && PyModule_AddObjectRef(made, "Ring", (PyObject *)&type) < 0) Py_CLEAR(made);
    return made;
}
