<?php
// Takes jobs over HTTP, works on them, and acknowledges them, the same as worker.py. Needs the curl extension alone.
// Run: php worker.php [HOST:PORT [NAME:PASSWORD]]. Copies share the work. Any node of a grid will do.

final class Refused extends Exception
{
}

final class Worker
{
    private CurlHandle $curl;

    public function __construct(private string $address, ?string $user)
    {
        $this->curl = curl_init();
        curl_setopt_array($this->curl, [CURLOPT_RETURNTRANSFER => true, CURLOPT_TIMEOUT => 60]);
        if ($user !== null) {
            curl_setopt($this->curl, CURLOPT_USERPWD, $user);
        }
    }

    public function run(): never
    {
        $waitMs = 0;
        while (true) {
            try {
                $events = $this->call('queue/take', ['t' => ['jobs'], 'max' => 10, 'wait_ms' => $waitMs])['events'];
                if ($waitMs === 0) {
                    echo "connected to $this->address\n";
                }
                $waitMs = 20000;
                $this->workOn($events);
            } catch (Refused $error) {
                fwrite(STDERR, $error->getMessage() . "\n");
                sleep(1); // what was not acknowledged comes again
            }
        }
    }

    /** Works on events, acknowledges those that went well, and gives the others back. */
    private function workOn(array $events): void
    {
        [$done, $failed] = [[], []];
        foreach ($events as $event) {
            try {
                $this->work($event);
                $done[] = $event['g'];
            } catch (JsonException | DomainException $error) {
                fwrite(STDERR, "failed: {$error->getMessage()}\n");
                $failed[] = $event['g'];
            }
        }
        if ($failed) {
            $this->call('queue/nack', ['g' => $failed, 'after_ms' => 500]);
        }
        if ($done) {
            $this->call('queue/ack', ['g' => $done]);
        }
    }

    /** Works on one job. A job may come again, so the work has to be repeatable. */
    private function work(array $event): void
    {
        $what = $event['d'];
        $text = ($what['event'] ?? null) === 'push' ? $what['data'] : $what['frame']['data'];
        $job = json_decode($text, true, flags: JSON_THROW_ON_ERROR);
        if (!is_array($job) || !is_string($job['job'] ?? null)) {
            throw new DomainException('not a job');
        }
        $answer = ['done' => strtoupper($job['job'])]; // your work
        if ($event['c'] === '') {
            return; // the job of queue.push, not of a device
        }
        try {
            $this->call('mesh/send', ['c' => $event['c'], 'd' => json_encode($answer)]);
        } catch (Refused $error) {
            fwrite(STDERR, $error->getMessage() . "\n"); // the device is gone, and the job is done
        }
    }

    private function call(string $method, array $params): array
    {
        curl_setopt($this->curl, CURLOPT_URL, "http://$this->address/v1/$method");
        curl_setopt($this->curl, CURLOPT_POSTFIELDS, json_encode($params));
        $body = curl_exec($this->curl);
        if ($body === false) {
            throw new Refused(curl_error($this->curl));
        }
        $answer = json_decode($body, true);
        if (!is_array($answer) || $answer['E'] !== null) {
            throw new Refused("$method: " . ($answer['E']['m'] ?? $body));
        }
        return $answer['r'];
    }
}

(new Worker($argv[1] ?? '127.0.0.1:6789', $argv[2] ?? null))->run();
