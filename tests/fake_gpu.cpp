// A GPU for torch's autograd engine, in a build of torch that knows none: FakeTensorMode has fake
// tensors on "cuda" there, but a backward pass asks for their device and stream.

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <cstring>
#include <new>

namespace {

using c10::Device, c10::DeviceIndex, c10::DeviceType, c10::EventFlag, c10::Stream;

struct Guard final : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device getDevice() const override { return Device(DeviceType::CUDA, 0); }
  Stream getStream(Device device) const noexcept override { return Stream(Stream::DEFAULT, device); }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
};

struct Hooks final : at::CUDAHooksInterface {
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
};

static_assert(sizeof(Hooks) == sizeof(at::CUDAHooksInterface));

const Guard guard;
char own_hooks[sizeof(Hooks)];

}  // namespace

// torch keeps the hooks that it has found first, so these take their place.
extern "C" void set_fake_gpu(bool on) {
  auto* hooks = const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks());
  auto& entry = c10::impl::device_guard_impl_registry[static_cast<size_t>(DeviceType::CUDA)];
  if (on) {
    std::memcpy(own_hooks, static_cast<void*>(hooks), sizeof(Hooks));
    new (hooks) Hooks();
    entry = &guard;
  } else {
    std::memcpy(static_cast<void*>(hooks), own_hooks, sizeof(Hooks));
    entry = nullptr;
  }
}
