//! The thread that writes snapshots, so that devices and control socket are served meanwhile.
//!
//! ```text
//! main thread                          this thread
//! Prepare: values, files       ---->   builds the needles
//!   pauses, saves the state    <----   Prepared
//! Write: state, attached pages ---->   scans, plans, writes
//!   lets the machine go on     <----   Written
//!                                      searches and hashes what was written
//!   tells the keeper           <----   Done, or Failed at any time
//! ```

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Builder;

use vmm_sys_util::eventfd::EventFd;

use super::job::Job;
use super::order::{Order, Resting};
use crate::protocol::{SnapshotProgress, SnapshotReport};
use crate::seccomp::Filter;

/// What the thread tells the main thread.
pub enum Report {
    /// All that can be done while the machine runs is done.
    Prepared,
    /// It goes on.
    Progress(SnapshotProgress),
    /// RAM and registers are not needed any more.
    Written,
    /// The snapshot is complete.
    Done(Box<SnapshotReport>),
    /// There is none; one line.
    Failed(String),
}

enum Message {
    Prepare(Box<Order>),
    Write(Box<Resting>),
    Abandon,
}

/// The thread, as the main thread sees it.
pub struct Worker {
    messages: Sender<Message>,
    reports: Receiver<Report>,
    event: EventFd,
}

impl Worker {
    /// Starts the thread, under this filter; it waits.
    ///
    /// # Errors
    /// When there is no thread or eventfd to be had.
    pub fn start(filter: Filter) -> io::Result<Self> {
        // Asks the kernel now, and remembers: locked memory needs it, when no filter lets it be asked any more.
        rustix::param::page_size();
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let (messages, inbox) = channel();
        let (outbox, reports) = channel();
        let reporter = Reporter {
            outbox,
            event: event.try_clone()?,
        };
        Builder::new()
            .name("snapshot".into())
            .spawn(move || serve(&filter, &inbox, &reporter))?;
        Ok(Self {
            messages,
            reports,
            event,
        })
    }

    /// Becomes readable with every report.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Begins a snapshot.
    pub fn prepare(&self, order: Order) {
        self.send(Message::Prepare(Box::new(order)));
    }

    /// Goes on with it: the machine rests.
    pub fn write(&self, machine: Resting) {
        self.send(Message::Write(Box::new(machine)));
    }

    /// Gives it up: the machine cannot be saved.
    pub fn abandon(&self) {
        self.send(Message::Abandon);
    }

    /// The next report, if there is one.
    pub fn report(&self) -> Option<Report> {
        // Empty before the first one.
        drop(self.event.read());
        self.reports.try_recv().ok()
    }

    fn send(&self, message: Message) {
        self.messages
            .send(message)
            .expect("the thread ends with the process only");
    }
}

/// The other end of the reports.
pub struct Reporter {
    outbox: Sender<Report>,
    event: EventFd,
}

impl Reporter {
    /// Reports.
    pub fn tell(&self, report: Report) {
        // Both ends live as long as the process; a full counter is readable already.
        drop(self.outbox.send(report));
        drop(self.event.write(1));
    }
}

#[cfg(test)]
impl Reporter {
    /// Reports to nobody.
    pub fn for_tests() -> Self {
        Self {
            outbox: channel().0,
            event: EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd"),
        }
    }
}

fn serve(filter: &Filter, inbox: &Receiver<Message>, reporter: &Reporter) -> ! {
    let installed = filter.install();
    while let Ok(message) = inbox.recv() {
        let Message::Prepare(order) = message else {
            continue;
        };
        let outcome = match &installed {
            Ok(()) => take(*order, inbox, reporter),
            Err(error) => Err(error.to_string()),
        };
        match outcome {
            Ok(Some(report)) => reporter.tell(Report::Done(report)),
            Ok(None) => {}
            Err(message) => reporter.tell(Report::Failed(message)),
        }
    }
    // The main thread ends the process. What the end of a thread takes is not in the filter.
    loop {
        std::thread::park();
    }
}

/// Takes a snapshot; none where it was abandoned.
fn take(
    order: Order,
    inbox: &Receiver<Message>,
    reporter: &Reporter,
) -> Result<Option<Box<SnapshotReport>>, String> {
    let job = Job::prepare(order, reporter).map_err(|error| error.one_line())?;
    reporter.tell(Report::Prepared);
    let Ok(Message::Write(machine)) = inbox.recv() else {
        return Ok(None);
    };
    let written = job.write(*machine).map_err(|error| error.one_line())?;
    reporter.tell(Report::Written);
    let report = written.verify().map_err(|error| error.one_line())?;
    Ok(Some(Box::new(report)))
}
