// Ctrl-C on a command that follows something: the first one cancels the call that is open, so that the command can say what
// goes on without it; the second one ends the program at once (exit 130).
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>

namespace mt::client {

// Installs the handler; at most one at a time, from one thread.
class Interrupt {
 public:
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  bool Seen() const;
  // As if it had been pressed.
  void Trigger();
  // Waits; true if interrupted meanwhile.
  bool Sleep(std::chrono::milliseconds span) const;

  // While it lives, an interrupt cancels `context`.
  class Scope {
   public:
    Scope(Interrupt* interrupt, grpc::ClientContext* context);
    ~Scope();

   private:
    Interrupt* interrupt_;
    grpc::ClientContext* context_;
  };

 private:
  struct State;
  State* state_;
};

}  // namespace mt::client
