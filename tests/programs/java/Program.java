// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.security.MessageDigest;
import java.util.Arrays;
import java.util.concurrent.Callable;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.IntStream;

/** A server that has files and takes what it is sent, and its clients: "serve PORT", "ask URL". */
class Program {
    static final int CLIENTS = 4;
    static final long NANOSECONDS = 3_000_000_000L;
    static final HttpClient CLIENT = HttpClient.newHttpClient();

    /** The same on both sides. */
    static byte[] content(int size) {
        var lines = new StringBuilder();
        for (int number = 0; lines.length() < size; number++) {
            lines.append(number).append('\n');
        }
        return Arrays.copyOf(lines.toString().getBytes(), size);
    }

    static void serve(int port) throws Exception {
        var content = content(1 << 20);
        var server = HttpServer.create(new InetSocketAddress(port), 0);
        server.setExecutor(Executors.newFixedThreadPool(CLIENTS));
        server.createContext("/", exchange -> {
            try (exchange; var sent = exchange.getRequestBody()) {
                byte[] answer;
                if (exchange.getRequestMethod().equals("GET")) {
                    int size = Integer.parseInt(exchange.getRequestURI().getPath().substring(1));
                    answer = Arrays.copyOf(content, size);
                } else {
                    answer = MessageDigest.getInstance("SHA-256").digest(sent.readAllBytes());
                }
                exchange.sendResponseHeaders(200, answer.length);
                exchange.getResponseBody().write(answer);
            } catch (java.security.NoSuchAlgorithmException error) {
                throw new AssertionError(error);
            }
        });
        server.start();
    }

    /** Asks as often as it can; gives how often that was in a second. */
    static double rate(HttpRequest request, byte[] expected) throws Exception {
        var count = new AtomicInteger();
        try (var threads = Executors.newFixedThreadPool(CLIENTS)) {
            long begun = System.nanoTime();
            Callable<Void> all = () -> {
                while (System.nanoTime() - begun < NANOSECONDS) {
                    var answer = CLIENT.send(request, BodyHandlers.ofByteArray());
                    if (!Arrays.equals(answer.body(), expected)) {
                        throw new Exception("not what was expected: " + answer);
                    }
                    count.incrementAndGet();
                }
                return null;
            };
            for (var done : threads.invokeAll(IntStream.range(0, CLIENTS).mapToObj(n -> all).toList())) {
                done.get();
            }
            return count.get() * 1e9 / (System.nanoTime() - begun);
        }
    }

    static void measure(String what, HttpRequest request, byte[] expected) throws Exception {
        // What is used for the first time has to be loaded, and compiled.
        rate(request, expected);
        System.out.printf("figure %f requests/s %s%n", rate(request, expected), what);
    }

    static void ask(String url) throws Exception {
        for (int size : new int[] {1 << 10, 1 << 20}) {
            var get = HttpRequest.newBuilder(URI.create(url + "/" + size)).build();
            measure("GET, " + (size >> 10) + " KiB", get, content(size));
        }
        var sent = content(1 << 20);
        var post = HttpRequest.newBuilder(URI.create(url)).POST(BodyPublishers.ofByteArray(sent)).build();
        var sum = MessageDigest.getInstance("SHA-256").digest(sent);
        measure("POST, 1024 KiB, of which the server makes a SHA-256", post, sum);
    }

    public static void main(String[] arguments) throws Exception {
        if (arguments[0].equals("serve")) {
            serve(Integer.parseInt(arguments[1]));
        } else {
            ask(arguments[1]);
        }
    }
}
