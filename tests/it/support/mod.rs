//! What the tests start and end: Redis, nsqd, nsqdelayd.
