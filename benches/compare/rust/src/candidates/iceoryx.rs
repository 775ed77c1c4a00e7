//! iceoryx2: publish-subscribe of byte slices over its `ipc` service, loaned and polled as its examples do. Nothing is
//! dropped: no safe overflow, and the publisher waits for room.

use std::hint::spin_loop;

use iceoryx2::{
    port::{publisher::Publisher, subscriber::Subscriber},
    prelude::*,
    service::port_factory::publish_subscribe::PortFactory,
};

use crate::{
    Failure,
    drive::{Receive, Send, stamp},
    plan::Plan,
};

type Bytes = [u8];
type Service = PortFactory<ipc::Service, Bytes, ()>;

fn service(plan: &Plan) -> Result<(Node<ipc::Service>, Service), Failure> {
    set_log_level(LogLevel::Fatal);
    let node = NodeBuilder::new().create::<ipc::Service>()?;
    let service = node
        .service_builder(&plan.name.as_str().try_into()?)
        .publish_subscribe::<Bytes>()
        .enable_safe_overflow(false)
        .history_size(0)
        .max_publishers(1)
        .max_subscribers(1)
        .subscriber_max_buffer_size(plan.slots)
        .open_or_create()?;
    Ok((node, service))
}

/// The publisher.
pub(crate) struct Sender {
    publisher: Publisher<ipc::Service, Bytes, ()>,
    bytes: usize,
    _service: Service,
    _node: Node<ipc::Service>,
}

impl Sender {
    pub(crate) fn new(plan: &Plan) -> Result<Self, Failure> {
        let (node, service) = service(plan)?;
        let publisher = service
            .publisher_builder()
            .initial_max_slice_len(plan.bytes)
            .backpressure_strategy(BackpressureStrategy::RetryUntilDelivered)
            .create()?;
        Ok(Self { publisher, bytes: plan.bytes, _service: service, _node: node })
    }
}

impl Send for Sender {
    fn send(&mut self, first: u64, last: u64) -> Result<(), Failure> {
        let sample = self.publisher.loan_slice_uninit(self.bytes)?;
        // SAFETY: every byte pattern is a `u8`, and the memory was zeroed when the kernel handed it out.
        let mut sample = unsafe { sample.assume_init() };
        stamp(sample.payload_mut(), first, last);
        sample.send()?;
        Ok(())
    }
}

/// The subscriber.
pub(crate) struct Receiver {
    subscriber: Subscriber<ipc::Service, Bytes, ()>,
    _service: Service,
    _node: Node<ipc::Service>,
}

impl Receiver {
    pub(crate) fn new(plan: &Plan) -> Result<Self, Failure> {
        let (node, service) = service(plan)?;
        let subscriber = service.subscriber_builder().create()?;
        Ok(Self { subscriber, _service: service, _node: node })
    }
}

impl Receive for Receiver {
    fn receive(&mut self, look: &mut impl FnMut(&[u8])) -> Result<(), Failure> {
        loop {
            if let Some(sample) = self.subscriber.receive()? {
                look(sample.payload());
                return Ok(());
            }
            spin_loop();
        }
    }
}
