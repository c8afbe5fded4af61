// A function with a stack of its own that runs when it is resumed and stops where it yields. One operating-system thread resumes
// it and is where it yields to.
//
// Switching is setjmp and longjmp, a few nanoseconds. Under AddressSanitizer and ThreadSanitizer, which have to be told about
// stacks, it is swapcontext with their annotations.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>

namespace mt::emulator {

class Fiber {
 public:
  using Body = void (*)(void* context);

  Fiber();  // reserves a stack with a page below it that may not be touched; ends the program if there is no memory
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next Resume begins body(context). The one before has ended.
  void Start(Body body, void* context);
  // Runs until the body yields (true) or ends (false).
  bool Resume();
  // On the fiber's own stack: back to Resume.
  void Yield();

 private:
  static void Enter();
  [[noreturn]] void Loop();  // one body after the other, on the fiber's stack

  char* stack_ = nullptr;
  Body body_ = nullptr;
  void* context_ = nullptr;
  bool entered_ = false, ended_ = true;
#if defined(__SANITIZE_ADDRESS__) || defined(MT_EMULATOR_RACES)
  ucontext_t self_, resumer_;
  const void* resumer_stack_ = nullptr;
  size_t resumer_stack_bytes_ = 0;
  void* shadow_ = nullptr;  // what the sanitizer knows this fiber by
  void* resumer_shadow_ = nullptr;
#else
  jmp_buf self_, resumer_;
#endif
};

}  // namespace mt::emulator
