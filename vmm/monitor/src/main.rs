//! The monitor process: started by the keeper, for one machine.

fn main() -> std::process::ExitCode {
    cachot_vmm::monitor::run().into()
}
