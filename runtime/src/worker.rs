//! A thread that compiles, so that the guest does not wait.
//!
//! It owns the translator and nothing of the machine: a [`Job`] carries the guest's instructions, a [`Done`] carries
//! host code that the vCPU's thread installs. Between the two the blocks may die, and the code is thrown away.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
};

use translator::{CodeBlock, TranslateError, Translator};

use crate::{kick::KickTarget, region::Formed};

/// Something compiled.
pub(crate) struct Done {
    pub formed: Formed,
    pub code: Result<CodeBlock, TranslateError>,
    /// What it took.
    pub nanoseconds: u64,
}

impl Done {
    /// Compiles here and now.
    pub fn compile(translator: &mut Translator, formed: Formed) -> Self {
        let start = processor_time();
        let code = translator.translate_region(&formed.region);
        Self { formed, code, nanoseconds: processor_time() - start }
    }
}

/// Nanoseconds that this thread has run: what a busy host takes away does not count.
pub(crate) fn processor_time() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The thread, from the vCPU's side.
pub(crate) struct Worker {
    /// `None` once the thread is to end.
    jobs: Option<Sender<Formed>>,
    done: Receiver<Done>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread. Whenever something is done it makes the vCPU look.
    pub fn start(mut translator: Translator, target: Arc<KickTarget>) -> std::io::Result<Self> {
        let (jobs, inbox) = channel::<Formed>();
        let (outbox, done) = channel();
        let thread = std::thread::Builder::new().name("compiler".to_owned()).spawn(move || {
            for formed in inbox {
                if formed.members[0].is_dead() {
                    continue;
                }
                if outbox.send(Done::compile(&mut translator, formed)).is_err() {
                    break;
                }
                target.request_attention();
            }
        })?;
        Ok(Self { jobs: Some(jobs), done, thread: Some(thread) })
    }

    /// Has a region compiled. What became of it comes out of [`Worker::take`], unless its head died first.
    pub fn submit(&self, formed: Formed) {
        if let Some(jobs) = &self.jobs {
            // The thread lives as long as this; if it has died, the block stays with what it has.
            let _ = jobs.send(formed);
        }
    }

    /// Something that is done.
    pub fn take(&self) -> Option<Done> {
        self.done.try_recv().ok()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Jobs that wait are dropped with the channel's other end, after the one that is being compiled.
        self.jobs = None;
        while self.done.try_recv().is_ok() {}
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
