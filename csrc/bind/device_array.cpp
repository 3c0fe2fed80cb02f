#include "bind/device_array.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <numeric>

#include "bind/arrays.h"
#include "bind/dlpack.h"
#include "cuda/arrays.h"

namespace fastrnn::bind {

// ---- element types

namespace {

struct NamedType {
  const char* name;
  ElementType type;
  const char* typestr;  // NumPy's and __cuda_array_interface__'s; null where they have none
};
constexpr NamedType kTypes[] = {
    {"float32", {dlpack::kFloat, 32}, "<f4"}, {"float64", {dlpack::kFloat, 64}, "<f8"},
    {"float16", {dlpack::kFloat, 16}, "<f2"}, {"bfloat16", {dlpack::kBfloat, 16}, nullptr},
    {"bool", {dlpack::kBool, 8}, "|b1"},      {"int64", {dlpack::kInt, 64}, "<i8"},
    {"int32", {dlpack::kInt, 32}, "<i4"},     {"int16", {dlpack::kInt, 16}, "<i2"},
    {"int8", {dlpack::kInt, 8}, "|i1"},       {"uint8", {dlpack::kUInt, 8}, "|u1"},
    {"uint16", {dlpack::kUInt, 16}, "<u2"},   {"uint32", {dlpack::kUInt, 32}, "<u4"},
    {"uint64", {dlpack::kUInt, 64}, "<u8"}};

const NamedType& named(ElementType type) {
  for (const NamedType& known : kTypes) {
    if (known.type == type) return known;
  }
  throw py::type_error("DLPack type code " + std::to_string(type.code) + " of " + std::to_string(type.bits) +
                       " bits is not known here");
}

constexpr ElementType kBfloat16{dlpack::kBfloat, 16};

}  // namespace

ElementType ElementType::of_name(const std::string& name) {
  for (const NamedType& known : kTypes) {
    if (name == known.name) return known.type;
  }
  throw py::type_error("a device array cannot be of " + name);
}

std::string ElementType::name() const { return named(*this).name; }

template <>
ElementType element_type<float>() {
  return {dlpack::kFloat, 32};
}
template <>
ElementType element_type<double>() {
  return {dlpack::kFloat, 64};
}
template <>
ElementType element_type<half_t>() {
  return {dlpack::kFloat, 16};
}
template <>
ElementType element_type<bfloat16_t>() {
  return kBfloat16;
}
template <>
ElementType element_type<std::int64_t>() {
  return {dlpack::kInt, 64};
}
template <>
ElementType element_type<bool>() {
  return {dlpack::kBool, 8};
}

// ---- arrays

std::string shape_text(const std::vector<Index>& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

namespace {

std::vector<Index> contiguous_strides(const std::vector<Index>& shape) {
  std::vector<Index> strides(shape.size());
  Index stride = 1;
  for (std::size_t i = shape.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<Index>(shape[i], 1);
  }
  return strides;
}

std::vector<Index> strides_in_bytes(const DeviceArray& a) {
  std::vector<Index> bytes = a.strides;
  for (Index& stride : bytes) stride *= a.type.bytes();
  return bytes;
}

std::size_t bytes_of(const DeviceArray& a) { return static_cast<std::size_t>(a.size() * a.type.bytes()); }

// `later` waits for `earlier`, unless one of them is in a capture that the other has no part in: what is
// captured runs when its graph is replayed, and whoever replays it sees to the order.
void order(cuda::Stream later, cuda::Stream earlier) {
  if (!(later == earlier) && cuda::capture_id(later) == cuda::capture_id(earlier))
    cuda::wait_for(later, earlier);
}

// Before `to` is written from what is used on `stream`: if that is being captured, the writing is as well.
void write_in_capture(const DeviceArray& to, cuda::Stream stream) {
  if (cuda::capturing(stream) && !cuda::capturing(to.stream())) to.storage->follow(stream);
}

}  // namespace

Storage::Storage(int on, cuda::Stream first)
    : device(on), stream(first), captured(cuda::capturing(first)), home(first) {}

Storage::~Storage() {
  if (memory.get() || (home_known && stream == home)) return;
  try {
    const cuda::DeviceScope scope(device);
    if (home_known) {
      order(home, stream);
    } else if (!cuda::capturing(stream)) {
      const Unlocked unlocked(Py_IsInitialized() != 0 && PyGILState_Check() != 0);
      cuda::synchronize(stream);
    }
  } catch (const cuda::Error&) {  // at the end of the process the driver may be gone
  }
}

void Storage::follow(cuda::Stream next) {
  captured |= cuda::capturing(next);
  if (next == stream) return;
  order(next, stream);
  stream = next;
  if (memory.get()) memory.reserve(0, next);  // where it will be released
}

void Storage::wait_for_replays() const {
  if (!captured || cuda::capturing(stream)) return;  // in a capture the host cannot read at all
  const cuda::DeviceScope scope(device);
  cuda::synchronize_device();
}

DeviceArray DeviceArray::empty(std::vector<Index> shape, ElementType type, cuda::Stream stream) {
  DeviceArray a;
  a.storage = std::make_shared<Storage>(cuda::current_device(), stream);
  a.type = type;
  a.shape = std::move(shape);
  a.strides = contiguous_strides(a.shape);
  a.data = static_cast<char*>(a.storage->memory.reserve(bytes_of(a), stream));
  return a;
}

DeviceArray DeviceArray::over(void* data, std::vector<Index> shape, ElementType type, int device,
                              cuda::Stream stream, std::shared_ptr<void> owner) {
  DeviceArray a;
  const cuda::DeviceScope scope(device);
  a.storage = std::make_shared<Storage>(device, stream);
  a.storage->owner = std::move(owner);
  a.data = static_cast<char*>(data);
  a.type = type;
  a.shape = std::move(shape);
  a.strides = contiguous_strides(a.shape);
  return a;
}

Index DeviceArray::size() const {
  return std::accumulate(shape.begin(), shape.end(), Index{1}, std::multiplies<>());
}

bool DeviceArray::contiguous() const {
  if (size() == 0) return true;
  const std::vector<Index> wanted = contiguous_strides(shape);
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] != 1 && strides[i] != wanted[i]) return false;
  }
  return true;
}

void copy(const DeviceArray& to, const DeviceArray& from) {
  if (to.size() == 0) return;
  const cuda::DeviceScope scope(to.device());
  write_in_capture(to, from.stream());
  const cuda::Stream stream = to.stream();
  from.storage->follow(stream);
  if (to.contiguous() && from.contiguous()) {
    cuda::copy_on_device(to.data, from.data, bytes_of(to), stream);
  } else {
    if (to.ndim() > cuda::kMostAxes) throw py::value_error("an array of more than 4 axes cannot be copied");
    cuda::copy_strided(stream, to.type.bytes(), static_cast<int>(to.ndim()), to.shape.data(), to.data,
                       to.strides.data(), from.data, from.strides.data());
  }
}

DeviceArray contiguous_copy(const DeviceArray& from) {
  const cuda::DeviceScope scope(from.device());
  DeviceArray to = DeviceArray::empty(from.shape, from.type, from.stream());
  copy(to, from);
  return to;
}

std::shared_ptr<void> hold(py::object object) {
  return {object.release().ptr(), [](void* held) {
            if (!Py_IsInitialized()) return;
            const py::gil_scoped_acquire locked;
            Py_DECREF(static_cast<PyObject*>(held));
          }};
}

namespace {

// ---- from and to the host

py::dtype host_type(ElementType type) {
  return type == kBfloat16 ? py::dtype::of<float>() : py::dtype(named(type).typestr);
}

// Of a NumPy array whose dtype is host_type(type); bfloat16 is rounded from float32.
DeviceArray from_host(const py::array& array, ElementType type, int device, cuda::Stream stream) {
  if (!array.dtype().is(host_type(type)) && !array.dtype().equal(host_type(type))) {
    throw py::type_error("the array is " + py::str(array.dtype()).cast<std::string>() + "; expected " +
                         py::str(host_type(type)).cast<std::string>());
  }
  const py::array plain = py::array::ensure(array, kPlain);
  if (!plain) throw py::error_already_set();
  const cuda::DeviceScope scope(device);
  DeviceArray to =
      DeviceArray::empty(std::vector<Index>(plain.shape(), plain.shape() + plain.ndim()), type, stream);
  const void* from = plain.data();
  const Index count = to.size();
  const Unlocked unlocked;
  std::vector<bfloat16_t> narrowed;
  if (type == kBfloat16) {
    narrowed.resize(static_cast<std::size_t>(count));
    for (Index i = 0; i < count; ++i)
      narrowed[static_cast<std::size_t>(i)] = narrow<bfloat16_t>(static_cast<const float*>(from)[i]);
    from = narrowed.data();
  }
  cuda::copy_to_device(to.data, from, bytes_of(to), stream);
  return to;
}

py::array to_host(const DeviceArray& array) {
  {
    const Unlocked unlocked;
    array.storage->wait_for_replays();
  }
  const DeviceArray from = array.contiguous() ? array : contiguous_copy(array);
  const cuda::DeviceScope scope(from.device());
  py::array to(host_type(from.type), std::vector<py::ssize_t>(from.shape.begin(), from.shape.end()));
  void* data = to.mutable_data();
  const Unlocked unlocked;
  if (from.type == kBfloat16) {
    const Index count = from.size();
    std::vector<bfloat16_t> narrow(static_cast<std::size_t>(count));
    cuda::copy_to_host(narrow.data(), from.data, bytes_of(from), from.stream());
    for (Index i = 0; i < count; ++i)
      static_cast<float*>(data)[i] = widen(narrow[static_cast<std::size_t>(i)]);
  } else {
    cuda::copy_to_host(data, from.data, bytes_of(from), from.stream());
  }
  return to;
}

// ---- from other libraries

template <class Managed>
DeviceArray take_capsule(const py::capsule& capsule, cuda::Stream stream) {
  auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule.ptr(), Managed::kName));
  if (!managed) throw py::error_already_set();
  const dlpack::Tensor& t = managed->tensor;
  if (!dlpack::is_cuda(t.device.type)) throw py::value_error("the array is not on a CUDA device");
  if (t.dtype.lanes != 1) throw py::type_error("vector types are not known here");
  if constexpr (std::is_same_v<Managed, dlpack::Versioned>) {
    if (managed->major != 1)
      throw py::type_error("DLPack " + std::to_string(managed->major) + " is not known here; expected 1");
  }
  // From here on it is ours.
  PyCapsule_SetName(capsule.ptr(), Managed::kUsedName);
  std::shared_ptr<void> owner(managed, [](void* p) {
    auto* mine = static_cast<Managed*>(p);
    if (mine->deleter) mine->deleter(mine);
  });
  DeviceArray a = DeviceArray::over(static_cast<char*>(t.data) + t.byte_offset,
                                    std::vector<Index>(t.shape, t.shape + t.ndim),
                                    {t.dtype.code, t.dtype.bits}, t.device.id, stream, std::move(owner));
  if (t.strides) a.strides.assign(t.strides, t.strides + t.ndim);
  if constexpr (std::is_same_v<Managed, dlpack::Versioned>)
    a.writeable = !(managed->flags & dlpack::kReadOnly);
  return a;
}

int device_of_producer(const py::object& value) {
  return py::int_(py::tuple(value.attr("__dlpack_device__")())[1]).cast<int>();
}

// `home` is the stream that the array's library works on, and frees its memory on; 0 if unknown. The producer
// makes `stream` wait for what the array is made of, unless that is queued there already, or one of the two
// is in a capture that the other has no part in.
DeviceArray from_dlpack(const py::object& value, std::uintptr_t stream, std::uintptr_t home) {
  py::object capsule;
  const py::object producer = py::module_::import("fastrnn._device").attr("capsule_maker")(value);
  bool unordered = home == stream;
  if (!unordered) {
    const cuda::DeviceScope scope(device_of_producer(value));
    const std::uint64_t capture_of_home = home ? cuda::capture_id(stream_of(home)) : 0;
    unordered = cuda::capture_id(stream_of(stream)) != capture_of_home;  // as in order()
  }
  const py::int_ told = unordered ? py::int_(-1) : py::int_(stream);
  try {
    capsule = producer(py::arg("stream") = told, py::arg("max_version") = py::make_tuple(1, 0));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
    capsule = producer(py::arg("stream") = told);  // from before version 1
  }
  const auto plain = py::reinterpret_borrow<py::capsule>(capsule);
  DeviceArray array = PyCapsule_IsValid(capsule.ptr(), dlpack::Versioned::kName)
                          ? take_capsule<dlpack::Versioned>(plain, stream_of(stream))
                          : take_capsule<dlpack::Plain>(plain, stream_of(stream));
  array.storage->home_known = home != 0;
  if (home) array.storage->home = stream_of(home);
  return array;
}

DeviceArray from_cuda_array_interface(const py::object& value, std::uintptr_t stream) {
  const py::dict interface = value.attr("__cuda_array_interface__");
  const auto typestr = interface["typestr"].cast<std::string>();
  const auto* known = std::find_if(std::begin(kTypes), std::end(kTypes), [&](const NamedType& type) {
    return type.typestr && typestr.substr(1) == type.typestr + 1 && typestr[0] != '>';
  });
  if (known == std::end(kTypes)) throw py::type_error("the type " + typestr + " is not known here");
  const auto data = interface["data"].cast<std::pair<std::uintptr_t, bool>>();
  auto* memory = reinterpret_cast<void*>(data.first);
  const auto shape = interface["shape"].cast<std::vector<Index>>();
  int device = memory ? cuda::device_of(memory) : -1;
  const bool nothing = std::find(shape.begin(), shape.end(), 0) != shape.end();
  if (device < 0 && nothing) device = cuda::current_device();  // such arrays may have any address
  if (device < 0) throw py::value_error("the array is not on a CUDA device");
  DeviceArray a = DeviceArray::over(memory, shape, known->type, device, stream_of(stream), hold(value));
  a.writeable = !data.second;
  if (interface.contains("strides") && !interface["strides"].is_none()) {
    a.strides = interface["strides"].cast<std::vector<Index>>();
    for (Index& step : a.strides) {
      if (step % a.type.bytes()) throw py::value_error("the array has strides between elements");
      step /= a.type.bytes();
    }
  }
  a.storage->home_known = interface.contains("stream") && !interface["stream"].is_none();
  if (a.storage->home_known) {
    a.storage->home = stream_of(interface["stream"].cast<std::uintptr_t>());
    const cuda::DeviceScope scope(device);
    order(stream_of(stream), a.storage->home);
  }
  return a;
}

// ---- to other libraries

template <class Managed>
py::capsule make_capsule(const DeviceArray& array, [[maybe_unused]] bool copied) {
  struct Context {
    Managed managed{};
    DeviceArray array;
  };
  auto* context = new Context{{}, array};
  Managed& m = context->managed;
  m.context = context;
  // The memory's owner may be a Python object, whose release takes the interpreter lock itself.
  m.deleter = [](Managed* self) { delete static_cast<Context*>(self->context); };
  m.tensor = {context->array.data,
              {dlpack::kCuda, array.device()},
              static_cast<std::int32_t>(array.ndim()),
              {array.type.code, array.type.bits, 1},
              context->array.shape.data(),
              context->array.strides.data(),
              0};
  if constexpr (std::is_same_v<Managed, dlpack::Versioned>) {
    m.major = 1;
    m.minor = 0;
    m.flags = (array.writeable ? 0 : dlpack::kReadOnly) | (copied ? dlpack::kIsCopied : 0);
  }
  return py::capsule(&m, Managed::kName, [](PyObject* capsule) {
    if (!PyCapsule_IsValid(capsule, Managed::kName)) return;  // someone took it
    auto* unused = static_cast<Managed*>(PyCapsule_GetPointer(capsule, Managed::kName));
    unused->deleter(unused);
  });
}

py::capsule to_dlpack(const DeviceArray& array, const py::object& stream, const py::object& max_version,
                      const py::object& dl_device, const py::object& want_copy) {
  if (!dl_device.is_none() && !dl_device.equal(py::make_tuple(int{dlpack::kCuda}, array.device()))) {
    throw py::buffer_error("the array is on cuda:" + std::to_string(array.device()) +
                           "; numpy() copies it to the host");
  }
  const bool to_copy = !want_copy.is_none() && want_copy.cast<bool>();
  const bool versioned = !max_version.is_none() && max_version.cast<std::pair<int, int>>().first >= 1;
  if (!versioned && !array.writeable && !to_copy) {
    throw py::buffer_error(
        "the array is read-only, which DLPack before version 1 cannot say; copy() makes one that is not");
  }
  const DeviceArray given = to_copy ? contiguous_copy(array) : array;
  const std::int64_t handle = stream.is_none() ? 1 : stream.cast<std::int64_t>();
  if (handle == 0 || handle < -1) {
    throw py::value_error("stream is " + std::to_string(handle) +
                          "; expected None, -1, 1 (legacy default), 2 (per thread) or a stream's handle");
  }
  if (handle != -1) {
    const cuda::DeviceScope scope(given.device());
    given.storage->follow(stream_of(static_cast<std::uintptr_t>(handle)));
  }
  return versioned ? make_capsule<dlpack::Versioned>(given, to_copy)
                   : make_capsule<dlpack::Plain>(given, to_copy);
}

py::dict cuda_array_interface(const DeviceArray& array) {
  const NamedType& type = named(array.type);
  if (!type.typestr) throw py::attribute_error(std::string("__cuda_array_interface__ has no ") + type.name);
  py::dict interface;
  interface["shape"] = py::tuple(py::cast(array.shape));
  interface["typestr"] = type.typestr;
  const auto address =
      array.size() ? reinterpret_cast<std::uintptr_t>(array.data) : 0;  // as the protocol asks
  interface["data"] = py::make_tuple(address, !array.writeable);
  interface["version"] = 3;
  interface["strides"] = py::none();
  if (!array.contiguous()) interface["strides"] = py::tuple(py::cast(strides_in_bytes(array)));
  interface["stream"] = handle_of(array.stream());
  return interface;
}

// ---- views

DeviceArray swap_axes(DeviceArray a, Index one, Index other) {
  const auto axis = [&](Index i) {
    const Index from_start = i < 0 ? i + a.ndim() : i;
    if (from_start < 0 || from_start >= a.ndim()) throw py::index_error("no axis " + std::to_string(i));
    return static_cast<std::size_t>(from_start);
  };
  std::swap(a.shape[axis(one)], a.shape[axis(other)]);
  std::swap(a.strides[axis(one)], a.strides[axis(other)]);
  return a;
}

DeviceArray reshape(DeviceArray a, const py::args& shape) {
  const bool listed =
      shape.size() == 1 && (py::isinstance<py::tuple>(shape[0]) || py::isinstance<py::list>(shape[0]));
  const py::object sizes = listed ? py::object(shape[0]) : py::object(shape);
  std::vector<Index> wanted = sizes.cast<std::vector<Index>>();
  const Index size = std::accumulate(wanted.begin(), wanted.end(), Index{1}, std::multiplies<>());
  if (size != a.size() || !a.contiguous()) {
    throw py::value_error("could not view an array of shape " + shape_text(a.shape) + " as " +
                          shape_text(wanted) + "; it has to be contiguous and of that size");
  }
  a.shape = std::move(wanted);
  a.strides = contiguous_strides(a.shape);
  return a;
}

// Integers, slices, None and one ellipsis.
DeviceArray view(const DeviceArray& array, const py::object& key) {
  const auto refuse = [] {
    throw py::index_error("a device array takes integers, slices, None and ... as an index");
  };
  const py::tuple keys = py::isinstance<py::tuple>(key) ? py::tuple(key) : py::make_tuple(key);
  Index named_axes = 0;
  for (const auto& k : keys) named_axes += !k.is_none() && !k.is(py::ellipsis());
  if (named_axes > array.ndim()) {
    throw py::index_error("too many indices for an array of shape " + shape_text(array.shape));
  }
  DeviceArray v = array;
  v.shape.clear();
  v.strides.clear();
  std::size_t axis = 0;
  const auto keep = [&](Index axes) {
    for (; axes > 0; --axes, ++axis) {
      v.shape.push_back(array.shape[axis]);
      v.strides.push_back(array.strides[axis]);
    }
  };
  bool skipped = false;
  for (const auto& k : keys) {
    if (k.is_none()) {
      v.shape.push_back(1);
      v.strides.push_back(0);
    } else if (k.is(py::ellipsis())) {
      if (skipped) throw py::index_error("an index can have one ellipsis");
      skipped = true;
      keep(array.ndim() - named_axes);
    } else if (py::isinstance<py::slice>(k)) {
      py::ssize_t start = 0, stop = 0, step = 0, length = 0;
      if (!py::reinterpret_borrow<py::slice>(k).compute(array.shape[axis], &start, &stop, &step, &length))
        throw py::error_already_set();
      v.data += (length ? start : 0) * array.strides[axis] * array.type.bytes();
      v.shape.push_back(length);
      v.strides.push_back(step * array.strides[axis]);
      ++axis;
    } else if (PyIndex_Check(k.ptr()) && !PyBool_Check(k.ptr())) {  // to NumPy a bool is a mask
      const Index at = PyNumber_AsSsize_t(k.ptr(), PyExc_IndexError);
      if (at == -1 && PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw py::error_already_set();
        PyErr_Clear();  // an array of indices
        refuse();
      }
      const Index size = array.shape[axis], from_start = at < 0 ? at + size : at;
      if (from_start < 0 || from_start >= size) {
        throw py::index_error("index " + std::to_string(at) + " is out of range for an axis of " +
                              std::to_string(size));
      }
      v.data += from_start * array.strides[axis] * array.type.bytes();
      ++axis;
    } else {
      refuse();
    }
  }
  keep(array.ndim() - static_cast<Index>(axis));
  return v;
}

DeviceArray broadcast(DeviceArray a, const std::vector<Index>& shape) {
  const auto refuse = [&, given = a.shape] {
    throw py::value_error("could not assign an array of shape " + shape_text(given) + " to one of shape " +
                          shape_text(shape));
  };
  if (a.shape.size() > shape.size()) refuse();
  const std::size_t more = shape.size() - a.shape.size();
  a.shape.insert(a.shape.begin(), more, 1);
  a.strides.insert(a.strides.begin(), more, 0);
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (a.shape[i] == shape[i]) continue;
    if (a.shape[i] != 1) refuse();
    a.shape[i] = shape[i];
    a.strides[i] = 0;
  }
  return a;
}

bool on_device(const py::object& value) {
  return py::hasattr(value, "__cuda_array_interface__") ||
         (py::hasattr(value, "__dlpack_device__") &&
          dlpack::is_cuda(py::int_(py::tuple(value.attr("__dlpack_device__")())[0]).cast<int>()));
}

// The addresses from the first byte of an array, which is not empty, to the one past its last.
std::pair<const char*, const char*> span(const DeviceArray& a) {
  std::pair<const char*, const char*> ends{a.data, a.data + a.type.bytes()};
  for (std::size_t i = 0; i < a.shape.size(); ++i) {
    const Index reach = (a.shape[i] - 1) * a.strides[i] * a.type.bytes();
    (reach < 0 ? ends.first : ends.second) += reach;
  }
  return ends;
}

// Whether elements of `to` could be written before they are read as others of `from`.
bool in_its_own_way(const DeviceArray& to, const DeviceArray& from) {
  if (to.size() == 0 || from.size() == 0) return false;
  if (to.data == from.data && to.shape == from.shape && to.strides == from.strides) return false;
  const auto [to_first, to_end] = span(to);
  const auto [from_first, from_end] = span(from);
  return to_first < from_end && from_first < to_end;
}

void assign(const DeviceArray& array, const py::object& key, const py::object& value) {
  if (!array.writeable) throw py::value_error("the array is read-only");
  const DeviceArray to = view(array, key);
  std::optional<DeviceArray> from;
  const bool zero =
      PyFloat_Check(value.ptr()) || PyLong_Check(value.ptr()) ? value.equal(py::int_(0)) : false;
  if (zero &&
      to.contiguous()) {  // as in zero_grad(); needs no memory of the host, so that a graph can have it
    const cuda::DeviceScope scope(to.device());
    cuda::set_bytes(to.data, 0, bytes_of(to), to.stream());
    return;
  }
  if (py::isinstance<DeviceArray>(value)) {
    from = value.cast<DeviceArray>();
  } else if (on_device(value)) {
    if (py::hasattr(value, "__dlpack__")) {
      const py::object current =
          py::module_::import("fastrnn._device").attr("current_stream")(value, to.device());
      const std::uintptr_t home = current.is_none() ? 0 : current.cast<std::uintptr_t>();
      if (home) {
        const cuda::DeviceScope scope(to.device());
        write_in_capture(to, stream_of(home));
      }
      from = from_dlpack(value, handle_of(to.stream()), home);
    } else {
      from = from_cuda_array_interface(value, handle_of(to.stream()));
    }
  } else {
    const py::module_ numpy = py::module_::import("numpy");
    const py::array host =
        numpy.attr("asarray")(value).attr("astype")(host_type(to.type), py::arg("copy") = false);
    from = from_host(host, to.type, to.device(), to.stream());
  }
  if (!(from->type == to.type)) {
    throw py::type_error("could not assign " + from->type.name() + " on a device to " + to.type.name() +
                         "; convert it first");
  }
  if (from->device() != to.device()) {
    throw py::value_error("could not assign from cuda:" + std::to_string(from->device()) +
                          " to cuda:" + std::to_string(to.device()));
  }
  if (in_its_own_way(to, *from)) from = contiguous_copy(*from);
  copy(to, broadcast(*from, to.shape));
}

// How an array is pickled: as NumPy's, to be put on a device of the same number again.
py::tuple reduced(const DeviceArray& array) {
  return py::make_tuple(py::module_::import("fastrnn._device").attr("put_back"),
                        py::make_tuple(to_host(array), array.type.name(), array.device()));
}

// What NumPy's arrays tell by their flags.
struct Flags {
  py::object array;
};

}  // namespace

void register_device_array(py::module_& m) {
  py::class_<Flags>(m, "Flags", py::module_local())
      .def_property_readonly("c_contiguous",
                             [](const Flags& f) { return f.array.cast<const DeviceArray&>().contiguous(); })
      .def_property_readonly("aligned",
                             [](const Flags& f) { return f.array.cast<const DeviceArray&>().aligned(); })
      .def_property(
          "writeable", [](const Flags& f) { return f.array.cast<const DeviceArray&>().writeable; },
          [](Flags& f, bool writeable) { f.array.cast<DeviceArray&>().writeable = writeable; });

  py::class_<DeviceArray>(m, "DeviceArray", py::module_local())
      .def_property_readonly("shape", [](const DeviceArray& a) { return py::tuple(py::cast(a.shape)); })
      .def_property_readonly("ndim", &DeviceArray::ndim)
      .def_property_readonly("size", &DeviceArray::size)
      .def_property_readonly("dtype", [](const DeviceArray& a) { return a.type.name(); })
      .def_property_readonly("itemsize", [](const DeviceArray& a) { return a.type.bytes(); })
      .def_property_readonly("nbytes", [](const DeviceArray& a) { return a.size() * a.type.bytes(); })
      .def_property_readonly("strides",
                             [](const DeviceArray& a) { return py::tuple(py::cast(strides_in_bytes(a))); })
      .def_property_readonly("device",
                             [](const DeviceArray& a) { return "cuda:" + std::to_string(a.device()); })
      .def_property_readonly("ptr",
                             [](const DeviceArray& a) { return reinterpret_cast<std::uintptr_t>(a.data); })
      .def_property_readonly("stream", [](const DeviceArray& a) { return handle_of(a.stream()); })
      .def_property_readonly("flags", [](const py::object& self) { return Flags{self}; })
      .def(
          "follow",
          [](const DeviceArray& a, std::uintptr_t stream) {
            const cuda::DeviceScope scope(a.device());
            a.storage->follow(stream_of(stream));
          },
          py::arg("stream"))
      .def("numpy", &to_host)
      .def("copy", &contiguous_copy)
      .def("__copy__", &contiguous_copy)
      .def("__deepcopy__", [](const DeviceArray& a, const py::dict&) { return contiguous_copy(a); })
      .def("__reduce__", &reduced)
      .def("reshape", &reshape)
      .def("swapaxes", &swap_axes, py::arg("axis1"), py::arg("axis2"))
      .def("__getitem__", &view, py::arg("key"))
      .def("__setitem__", &assign, py::arg("key"), py::arg("value"))
      .def("__len__",
           [](const DeviceArray& a) {
             if (a.shape.empty()) throw py::type_error("an array without axes has no length");
             return a.shape[0];
           })
      .def("__array__",
           [](const DeviceArray& a, const py::args&, const py::kwargs&) -> py::object {
             throw py::type_error("the array is on cuda:" + std::to_string(a.device()) +
                                  "; numpy() copies it to the host");
           })
      .def("__dlpack__", &to_dlpack, py::kw_only(), py::arg("stream") = py::none(),
           py::arg("max_version") = py::none(), py::arg("dl_device") = py::none(),
           py::arg("copy") = py::none())
      .def("__dlpack_device__",
           [](const DeviceArray& a) { return py::make_tuple(int{dlpack::kCuda}, a.device()); })
      .def_property_readonly("__cuda_array_interface__", &cuda_array_interface)
      .def("__repr__", [](const DeviceArray& a) {
        return "DeviceArray(" + shape_text(a.shape) + ", " + a.type.name() +
               ", cuda:" + std::to_string(a.device()) + ")";
      });

  m.def(
      "empty",
      [](std::vector<Index> shape, const std::string& dtype, int device, std::uintptr_t stream) {
        const cuda::DeviceScope scope(device);
        return DeviceArray::empty(std::move(shape), ElementType::of_name(dtype), stream_of(stream));
      },
      py::arg("shape"), py::arg("dtype"), py::arg("device"), py::arg("stream"));
  m.def(
      "from_host",
      [](const py::array& array, const std::string& dtype, int device, std::uintptr_t stream) {
        return from_host(array, ElementType::of_name(dtype), device, stream_of(stream));
      },
      py::arg("array"), py::arg("dtype"), py::arg("device"), py::arg("stream"));
  m.def("from_dlpack", &from_dlpack, py::arg("array"), py::arg("stream"), py::arg("home") = 0);
  m.def("from_cuda_array_interface", &from_cuda_array_interface, py::arg("array"), py::arg("stream"));
}

}  // namespace fastrnn::bind
