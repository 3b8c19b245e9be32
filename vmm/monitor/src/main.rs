//! The monitor process: started by the keeper, for one machine.

fn main() {
    cachot_vmm::monitor::run()
}
