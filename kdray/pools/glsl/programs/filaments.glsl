// Threads of light, as lightning or roots.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = turn(TAU * random(0)) * centred(at);
    vec3 sum = mix(0.5 * ink(1), 0.2 * ink(2), 0.5 + 0.5 * p.y);
    int threads = count(3, 2, 5);
    for (int k = 0; k < threads; k++) {
        float way = between(k + 10, -0.8, 0.8) + between(4, 0.4,
            1.2) * (fbm(vec2(1.5 * p.x + 30.0 * random(k + 20), iTime * 0.5)) - 0.5) * 2.0;
        way += 0.3 * p.x * between(k + 40, -2.0, 2.0);
        sum += (0.3 + ink(k + 30)) * between(5, 0.03, 0.09) / (abs(p.y - way) + 0.03);
    }
    colour = vec4(sum, 1);
}
