//! When what the loop waits for was there: often long before the loop comes to hear of it, for it has other work too.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
};

use futures::task::AtomicWaker;
use tokio::time::Instant;

/// Stands between one source of events and whoever waits for them, and notes when the source first called.
///
/// A source that was asked in vain calls as soon as there is something, also when the future that asked was dropped since and nobody waits.
#[derive(Debug, Default)]
pub(super) struct Doorbell {
    bell: Arc<Bell>,
    /// When something was last taken, if the source was not asked in vain since: it may have had more then, for which it does not call.
    taken: Option<Instant>,
}

#[derive(Debug, Default)]
struct Bell {
    rung: Mutex<Option<Instant>>,
    waiting: AtomicWaker,
}

impl Bell {
    /// Nobody panics while holding it.
    fn rung(&self) -> MutexGuard<'_, Option<Instant>> {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung().get_or_insert_with(Instant::now);
        self.waiting.wake();
    }
}

impl Doorbell {
    /// Waits for an event of the one source, and says since when it was there. Dropping this loses nothing that dropping `event` does not.
    pub(super) async fn next<T>(&mut self, event: impl Future<Output = T>) -> (T, Instant) {
        let mut event = pin!(event);
        let waker = Waker::from(self.bell.clone());
        poll_fn(|context| {
            self.bell.waiting.register(context.waker());
            let rung = self.bell.rung().take();
            match event.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(event) => {
                    let now = Instant::now();
                    let since = rung.or(self.taken).unwrap_or(now);
                    // Whoever called meanwhile is among what was taken, or has been there since.
                    self.bell.rung().take();
                    self.taken = Some(now);
                    Poll::Ready((event, since))
                }
                Poll::Pending => {
                    self.taken = None;
                    Poll::Pending
                }
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use futures::FutureExt as _;
    use tokio::{
        sync::mpsc::{UnboundedReceiver, unbounded_channel},
        time::advance,
    };

    use super::*;
    use crate::cluster::{Origin, Source};

    const SECOND: Duration = Duration::from_secs(1);

    /// Takes what is there, and leaves what comes next to be called for.
    async fn drain(receiver: &mut UnboundedReceiver<u8>) -> Vec<u8> {
        let mut events: Vec<u8> = receiver.recv().await.into_iter().collect();
        while let Poll::Ready(Some(event)) = futures::poll!(pin!(receiver.recv())) {
            events.push(event);
        }
        events
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_while_nobody_waited_is_dated_back_to_when_it_came() {
        let (sender, mut receiver) = unbounded_channel();
        let mut doorbell = Doorbell::default();
        assert!(doorbell.next(drain(&mut receiver)).now_or_never().is_none());
        // The loop is at other work for six seconds; two events come after one and after three of them.
        for (wait, event) in [(1, 1), (2, 2)] {
            advance(wait * SECOND).await;
            sender.send(event).unwrap();
        }
        advance(3 * SECOND).await;
        let (events, since) = doorbell.next(drain(&mut receiver)).await;
        assert_eq!((events, since.elapsed()), (vec![1, 2], 5 * SECOND));
        // Bringing these into force takes two seconds, of which the next waits for one.
        advance(SECOND).await;
        sender.send(3).unwrap();
        advance(SECOND).await;
        let (events, since) = doorbell.next(drain(&mut receiver)).await;
        assert_eq!((events, since.elapsed()), (vec![3], SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_waited_for_did_not_wait_itself() {
        let (sender, mut receiver) = unbounded_channel();
        let mut doorbell = Doorbell::default();
        let sending = tokio::spawn(async move {
            advance(7 * SECOND).await;
            sender.send(1).unwrap();
            sender
        });
        let (_, since) = doorbell.next(drain(&mut receiver)).await;
        assert_eq!(since.elapsed(), Duration::ZERO);
        drop(sending.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_left_when_some_was_taken_waited_since_then() {
        let (sender, mut receiver) = unbounded_channel();
        let mut doorbell = Doorbell::default();
        sender.send(1).unwrap();
        sender.send(2).unwrap();
        let (first, since) = doorbell.next(receiver.recv()).await;
        assert_eq!((first, since.elapsed()), (Some(1), Duration::ZERO));
        advance(4 * SECOND).await;
        let (second, since) = doorbell.next(receiver.recv()).await;
        assert_eq!((second, since.elapsed()), (Some(2), 4 * SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_for_nothing_dates_nothing_back() {
        let (sender, mut receiver) = unbounded_channel();
        let mut doorbell = Doorbell::default();
        assert!(doorbell.next(drain(&mut receiver)).now_or_never().is_none());
        Waker::from(doorbell.bell.clone()).wake();
        advance(SECOND).await;
        assert!(doorbell.next(drain(&mut receiver)).now_or_never().is_none());
        advance(SECOND).await;
        sender.send(1).unwrap();
        advance(SECOND).await;
        let (_, since) = doorbell.next(drain(&mut receiver)).await;
        assert_eq!(since.elapsed(), SECOND);
    }

    /// The source calls for a change that comes while the one before is brought into force.
    #[tokio::test]
    async fn a_directory_calls_whenever_a_file_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (mut source, _) = Source::open(&Origin::Files(dir.path().to_owned())).unwrap();
        let mut doorbell = Doorbell::default();
        assert!(doorbell.next(source.next()).now_or_never().is_none());
        for name in ["a.yaml", "b.yaml"] {
            assert!(doorbell.bell.rung().is_none(), "{name} is not there yet");
            fs::write(dir.path().join(name), "").unwrap();
            // Of the clock of the source's own looks nothing is heard: nobody asks.
            let is_rung = async {
                while doorbell.bell.rung().is_none() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(60 * SECOND, is_rung).await.expect("the source calls");
            let rung = *doorbell.bell.rung();
            let (_, since) = doorbell.next(source.next()).await;
            assert_eq!(Some(since), rung);
        }
    }
}
