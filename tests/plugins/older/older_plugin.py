"""A worker of the older form, which gets everything and settles its delivery itself."""

from taskqueue.worker import BaseWorker


class Worker(BaseWorker):
    """Does what its body says.

    `publish TEXT`: publishes TEXT as its result and acknowledges, returns nothing.
    `reject TEXT`: rejects the delivery.  `silent TEXT`: returns TEXT without acknowledging, which is a failure.
    Anything else: acknowledges and returns the body in capitals.
    """

    def handle_task(self, channel, method, header, body):
        verb, _, rest = body.partition(b" ")
        if verb == b"publish":
            properties = type(header)(correlation_id=header.message_id, content_type="text/plain")
            channel.basic_publish(exchange="", routing_key="results", body=rest, properties=properties)
            channel.basic_ack(method.delivery_tag)
            return None
        if verb == b"reject":
            channel.basic_reject(method.delivery_tag, requeue=False)
            return None
        if verb == b"silent":
            return rest
        channel.basic_ack(delivery_tag=method.delivery_tag)
        return body.upper()
