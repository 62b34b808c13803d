<?php
// A chat room with login, the same as chat.py. Run: php chat.php [HOST:PORT [NAME:PASSWORD]]

require __DIR__ . '/../lib/gridcast.php';

const USERS = ['ada' => 'lovelace', 'alan' => 'turing', 'grace' => 'hopper']; // your user database
const FIRST_ROOM = 'lobby';

final class Chat
{
    public function __construct(private Gridcast $gridcast)
    {
    }

    public function run(): void
    {
        // An event is acknowledged once it was handled: if this program dies, it goes to another copy.
        $this->gridcast->call('queue.pop', ['t' => ['chat'], 'a' => true]);
        foreach ($this->gridcast->events() as $event) {
            $this->handle($event['c'], $event['d']);
            $this->gridcast->call('queue.ack', ['g' => $event['g']]);
        }
    }

    private function handle(string $client, array $what): void
    {
        $name = $what['context']['user_id'] ?? null;
        $room = $what['context']['room'] ?? null;
        if (($what['event'] ?? null) === 'close') {
            if ($name !== null) {
                $this->publish($room, ['left' => $name]);
            }
            return;
        }
        $message = $what['frame']['type'] === 'text' ? json_decode($what['frame']['data'], true) : [];
        $message = is_array($message) ? $message : [];
        $new = $message['room'] ?? null;
        if ($name === null) {
            $this->logIn($client, $message);
        } elseif (is_string($message['say'] ?? null)) {
            $this->publish($room, ['from' => $name, 'say' => $message['say']]);
        } elseif (is_string($new) && $new !== '' && strlen($new) <= 40) {
            $this->move($client, $name, $room, $new);
        } else {
            $this->send($client, ['error' => 'say, or room']);
        }
    }

    private function logIn(string $client, array $message): void
    {
        $name = is_string($message['login'] ?? null) ? $message['login'] : '';
        $password = is_string($message['password'] ?? null) ? $message['password'] : '';
        if (!hash_equals(USERS[$name] ?? '', $password) || !isset(USERS[$name])) {
            $this->send($client, ['error' => 'wrong name or password']);
            $this->call($client, 'close', 4001, 'wrong name or password');
            return;
        }
        $this->enter($client, $name, FIRST_ROOM);
        // Last, since it lets in what the client has sent meanwhile.
        $this->call($client, 'set_context', ['user_id' => $name, 'room' => FIRST_ROOM]);
    }

    private function move(string $client, string $name, string $old, string $new): void
    {
        $this->call($client, 'unsubscribe', "room:$old");
        $this->publish($old, ['left' => $name]);
        $this->call($client, 'set_context_value', 'room', $new);
        $this->enter($client, $name, $new);
    }

    private function enter(string $client, string $name, string $room): void
    {
        $this->send($client, ['welcome' => $name, 'room' => $room]);
        $this->publish($room, ['joined' => $name]);
        $this->call($client, 'subscribe', "room:$room");
    }

    private function send(string $client, array $message): void
    {
        $this->gridcast->call('mesh.send', ['c' => $client, 'd' => json_encode($message)]);
    }

    private function publish(string $room, array $message): void
    {
        $this->gridcast->call('mesh.publish', ['c' => "room:$room", 'd' => json_encode($message)]);
    }

    private function call(string $client, string $function, mixed ...$arguments): void
    {
        $this->gridcast->call('conn.call', ['c' => $client, 'f' => $function, 'a' => $arguments]);
    }
}

$address = $argv[1] ?? '127.0.0.1:6789';
while (true) {
    try {
        $chat = new Chat(new Gridcast($address, $argv[2] ?? null));
        echo "connected to $address\n";
        $chat->run();
    } catch (RuntimeException $error) {
        echo $error->getMessage(), "\n";
    }
    sleep(1);
}
